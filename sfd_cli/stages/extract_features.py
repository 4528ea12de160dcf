"""`sfd extract-features`: patch tokens of the frozen visual encoder, of every image or an evenly spread subset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sfd_cli.artifacts.fingerprints import finished
from sfd_cli.artifacts.output import StageOutput
from sfd_cli.config import Paths, Settings
from sfd_cli.data.images import ImageManifest, ImageReader, evenly_spaced
from sfd_cli.data.store import Field, Store, StoreWriter
from sfd_cli.device import choose_device
from sfd_cli.errors import UserError
from sfd_cli.messages import say
from sfd_cli.networks.visual_encoder import VisualEncoder
from sfd_cli.weights.visual_encoders import encoder_fingerprint, load_visual_encoder

STAGE = "extract-features"


def run(settings: Settings) -> dict[str, Any]:
    """Write the feature store: field `tokens` (2, N, D) float16 of every image, axis 0 being (as is, flipped).

    A shard is whole or absent, so an interrupted run is resumed from its last whole shard.

    Returns:
        The summary to print: images, shape of one image's tokens, encoder, folder.

    Raises:
        UserError: no images are prepared, or the encoder's weights cannot be had.
    """
    paths, encoder = settings.paths, settings.encoder
    finished(paths.images, "sfd prepare-data")
    if settings.semvae.compressor == "none":
        return _skip(paths)
    manifest = ImageManifest.load(paths.images)
    indices = evenly_spaced(len(manifest), settings.features.max_images)
    chosen = {
        "encoder": encoder.name,
        "encoder_image_size": encoder.image_size,
        "image_size": settings.images.size,
        "max_images": settings.features.max_images,
        "shard_size": settings.features.shard_size,
    }
    inputs = {"images": manifest.fingerprint, "encoder": encoder_fingerprint(encoder)}
    # Where the weights lie does not matter, their digest is in the inputs; and a batch size moves tokens by less
    # than float16 resolves, so that a run short of memory may resume with another.
    inert = {"weights": encoder.weights, "batch_size": settings.features.batch_size}
    with StageOutput(paths.features, STAGE, chosen, inputs, paths.metrics, inert) as output:
        if output.complete and _is_whole(output.folder):
            say(f"{output.folder} is up to date")
        else:
            _write_store(settings, output.fingerprint, manifest, indices)
            output.finish(images=len(indices))
    flips, tokens, width = Store(paths.features).fields["tokens"].shape
    return {
        "images": f"{len(indices)} of {len(manifest)}",
        "tokens of an image": f"{flips} flips x {tokens} tokens x {width}",
        "encoder": f"{encoder.name}, {encoder.weights} weights, {encoder.image_size} px",
        "folder": str(paths.features),
    }


def _skip(paths: Paths) -> dict[str, Any]:
    """Features are for the Semantic VAE; without one there is only the record that there are none."""
    with StageOutput(paths.features, STAGE, {"compressor": "none"}, {}, paths.metrics) as output:
        if not output.complete:
            output.finish(images=0)
    return {"features": "none, for semvae.compressor is none", "folder": str(paths.features)}


def _is_whole(folder: Path) -> bool:
    """Whether a store that was finished is still all there; a damaged shard is written again, the others kept."""
    try:
        Store(folder)
    except UserError as damage:
        say(str(damage))
        return False
    return True


def _write_store(settings: Settings, fingerprint: str, manifest: ImageManifest, indices: list[int]) -> None:
    """Write the shards that are not there yet, then the index over all of them."""
    features, workers = settings.features, settings.runtime.workers
    device = choose_device(settings.runtime.device)
    encoder = load_visual_encoder(settings.encoder).to(device)
    fields = {"tokens": Field((2, encoder.grid**2, encoder.feature_width))}
    facts = {"encoder": encoder.name, "grid": encoder.grid}
    writer = StoreWriter(settings.paths.features, fields, len(indices), features.shard_size, fingerprint, facts)
    writer.remove_leftovers()
    finished = writer.finished_shards()
    shards = [shard for shard in range(writer.shard_count) if shard not in finished]
    if finished:
        say(f"going on after {len(finished)} of {writer.shard_count} shards")
    batches = {shard: _batches([indices[row] for row in writer.rows(shard)], features.batch_size) for shard in shards}
    reader = ImageReader(manifest, settings.images.size, workers)
    # One stream over all shards: the next shard's images are decoded while this one's are encoded.
    stream = reader.iterate([batch for shard in shards for batch in batches[shard]])
    done = len(indices) - sum(len(writer.rows(shard)) for shard in shards)
    with tqdm(desc=STAGE, initial=done, total=len(indices), unit="image", disable=None) as bar:
        for shard in shards:
            with writer.shard(shard) as file:
                row = 0
                for batch in batches[shard]:
                    file.write(row, {"tokens": encode_flips(encoder, next(stream).to(device))})
                    row += len(batch)
                    bar.update(len(batch))
    writer.finish(
        labels=[manifest.labels[index] for index in indices],
        files=[manifest.files[index] for index in indices],
        indices=indices,
        classes=manifest.classes,
    )


@torch.inference_mode()
def encode_flips(encoder: VisualEncoder, images: Tensor) -> np.ndarray:
    """Patch tokens of uint8 images (n, 3, H, W) as they are and flipped left to right: (n, 2, N, D) float16."""
    images = images.float() / 255
    # The tokens of a flipped image are not the flipped tokens, so each is a forward pass of its own.
    both = [encoder(flipped)[0].half() for flipped in (images, images.flip(-1))]
    return torch.stack(both, dim=1).cpu().numpy()


def _batches(indices: list[int], size: int) -> list[list[int]]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]

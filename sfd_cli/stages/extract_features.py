"""`sfd extract-features`: patch tokens of the frozen visual encoder, of every image or an evenly spread subset."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfd_cli.artifacts.fingerprints import finished
from sfd_cli.artifacts.produce import produce
from sfd_cli.artifacts.recipe import Facts, Recipe
from sfd_cli.config import Settings, identity
from sfd_cli.data.contents import has_contents, read_contents
from sfd_cli.data.images import ImageManifest, ImageReader, evenly_spaced
from sfd_cli.data.shards import StoreWriter, split, write_shards
from sfd_cli.data.store import Field, Store, is_readable
from sfd_cli.data.transfer import fetching, one_behind
from sfd_cli.distributed.processes import Processes
from sfd_cli.networks.precision import FrozenPrecision, computing, frozen
from sfd_cli.networks.visual_encoder import VisualEncoder
from sfd_cli.pipeline.encoding import (
    by_passes,
    encode_flips,
    images_of_a_pass,
    precision_facts,
    precision_of,
    when_finite,
)
from sfd_cli.pipeline.taking_over import feature_keys, taking_over
from sfd_cli.weights.visual_encoders import encoder_fingerprint, load_visual_encoder

STAGE = "extract-features"
# A batch size moves tokens by less than float16 resolves, so that a run short of memory may resume with another.
FREE = {"batch_size"}


@dataclass(frozen=True)
class _Loaded:
    """What makes tokens.

    Attributes:
        encoder: on its device.
        precision: what it computes in there.
        device: this process's own.
        contents: hashes of the images, where they are known.
    """

    encoder: VisualEncoder
    precision: FrozenPrecision
    device: torch.device
    contents: list[bytes] | None


def run(settings: Settings) -> dict[str, Any]:
    """Write the feature store: field `tokens` (2, N, D) float16 of every image, axis 0 being (as is, flipped).

    With `images.mirror: false` that axis is (as is) alone. A shard is whole or absent, so an interrupted run goes on
    from its last whole shard; under torchrun the processes take the shards in turn. Images whose tokens an earlier
    store beside it holds, made alike, are not encoded again: see `taking_over`.

    Returns:
        The summary to print: images, shape of one image's tokens, encoder, folder.

    Raises:
        UserError: no images are prepared, the encoder's weights cannot be had, or the device has no such precision.
        StageFailure: a token is not finite in float16.
    """
    paths, encoder = settings.paths, settings.encoder
    finished(paths.images, "sfd prepare-data")
    if settings.semvae.compressor == "none":
        return _skip(settings)
    manifest = ImageManifest.load(paths.images)
    indices = evenly_spaced(len(manifest), settings.features.max_images)
    recipe = _recipe(settings, manifest)

    def load(processes: Processes) -> _Loaded:
        device = processes.device(settings.runtime.device)
        precision = precision_of("features", settings.features, device)
        return _Loaded(
            load_visual_encoder(encoder).to(device), precision, device, read_contents(paths.images, manifest)
        )

    return produce(
        recipe,
        load,
        partial(_write_store, settings, recipe.fingerprint, manifest, indices),
        metrics=paths.metrics,
        is_done=lambda _: is_readable(paths.features),
        can_mend=lambda _: True,
        takes_over=has_contents(paths.images),
        tell=lambda _: _summary(settings, f"{len(indices)} of {len(manifest)}"),
    )


def _summary(settings: Settings, images: str) -> dict[str, Any]:
    paths, encoder = settings.paths, settings.encoder
    flips, tokens, width = Store(paths.features).fields["tokens"].shape
    views = f"{flips} flips x " if flips > 1 else ""
    return {
        "images": images,
        "tokens of an image": f"{views}{tokens} tokens x {width}",
        "encoder": f"{encoder.name}, {encoder.weights} weights, {encoder.image_size} px",
        "folder": str(paths.features),
    }


def _recipe(settings: Settings, manifest: ImageManifest) -> Recipe:
    features, encoder = settings.features, settings.encoder
    return Recipe(
        STAGE,
        settings.paths.features,
        {
            "encoder": encoder.name,
            "encoder_image_size": encoder.image_size,
            "image_size": settings.images.size,
            **identity(settings.images, include={"mirror"}),
            **identity(features, exclude=FREE),
        },
        {"images": manifest.fingerprint, "encoder": encoder_fingerprint(encoder)},
        # Where the weights are does not matter, their digest is in the inputs.
        free={"weights": encoder.weights, **identity(features, include=FREE)},
    )


def _skip(settings: Settings) -> dict[str, Any]:
    """Features are for the semantic latent; without one there is only the record that there are none."""
    recipe = Recipe(STAGE, settings.paths.features, {"compressor": "none"}, {})
    produce(recipe, lambda _: None, lambda _, __: {"images": 0}, metrics=settings.paths.metrics)
    return {"features": "none, for semvae.compressor is none", "folder": str(settings.paths.features)}


def _write_store(
    settings: Settings,
    fingerprint: str,
    manifest: ImageManifest,
    indices: list[int],
    processes: Processes,
    loaded: _Loaded,
) -> Facts:
    """Write the shards that are not there yet, then the index over all of them."""
    encoder, device, contents = loaded.encoder, loaded.device, loaded.contents
    features, flips = settings.features, settings.images.flips
    fields = {"tokens": Field((flips, encoder.grid**2, encoder.feature_width))}
    facts = {"encoder": encoder.name, "grid": encoder.grid}
    folder, size, keys = settings.paths.features, features.batch_size, None
    network: Callable[..., Sequence[Tensor]] = computing(encoder, loaded.precision, device)
    if contents is not None:
        together = images_of_a_pass(device, size)
        keys = feature_keys(settings, [contents[index] for index in indices], together, loaded.precision)
        network = partial(by_passes, network, together)
    writer = StoreWriter(folder, fields, len(indices), features.shard_size, fingerprint, facts, keys)
    reader = ImageReader(manifest, settings.images.size, settings.runtime.threads, device)

    def begin(batch: Sequence[int], images: Tensor) -> Callable[[], dict[str, np.ndarray]]:
        with frozen(loaded.precision, device):
            tokens = fetching({"tokens": encode_flips(network, images, flips)}, device)
        return partial(when_finite, manifest, batch, tokens)

    def encode(batches: Sequence[Sequence[int]]) -> Iterator[dict[str, np.ndarray]]:
        listed = [[indices[row] for row in batch] for batch in batches]
        return one_behind(map(begin, listed, reader.iterate(listed)))

    make, share = taking_over(writer, encode, STAGE, size, processes), (processes.rank, processes.count)
    write_shards(writer, lambda rows: split(rows, size), make, doing=STAGE, share=share)
    processes.barrier()
    if processes.is_main:
        writer.require_shards(others=processes.count > 1)
        labels, files = [manifest.labels[index] for index in indices], [manifest.files[index] for index in indices]
        writer.finish(labels, files, indices, manifest.classes)
    return {"images": len(indices), **precision_facts(loaded.precision)}

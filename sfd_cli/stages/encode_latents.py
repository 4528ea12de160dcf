"""`sfd encode-latents`: every image, both flips, as a composite latent (texture first, semantics last) in HDF5."""

from __future__ import annotations

from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sfd_cli.artifacts.fingerprints import finished, finished_model
from sfd_cli.artifacts.output import StageOutput
from sfd_cli.config import Settings
from sfd_cli.data.images import ImageManifest
from sfd_cli.data.moments import ChannelMoments
from sfd_cli.data.prefetch import prefetched
from sfd_cli.data.store import Store, StoreWriter
from sfd_cli.device import choose_device
from sfd_cli.errors import UserError
from sfd_cli.messages import say
from sfd_cli.pipeline.latent_encoder import LatentEncoder
from sfd_cli.processes import Processes
from sfd_cli.weights.models import open_semantic, open_texture_vae
from sfd_cli.weights.visual_encoders import encoder_fingerprint

STAGE = "encode-latents"
# Batches encoded in advance, so that the device goes on while a finished shard is forced to the disk.
ENCODED_AHEAD = 4
STREAMS = ("texture", "semantic")
CHANNEL_AXIS = 2


def run(settings: Settings) -> dict[str, Any]:
    """Write the latent store, shard by shard; under torchrun the processes take the shards in turn.

    Fields, float16, axis 0 being (as is, flipped): `texture` (2, C_z, h, w), `semantic` (2, C_s, h, w) and, with
    `store_features`, `features` (2, N, D). Statistics of the composite over both flips: `mean`, `std` (C_z + C_s,).
    With `semvae.compressor: none` there is no `semantic`.

    Returns:
        The summary to print: images, shapes, folder; empty in all processes but the first.

    Raises:
        UserError: an input is missing, or they do not fit together.
        StageFailure: a latent is not finite in float16.
    """
    paths = settings.paths
    finished(paths.images, "sfd prepare-data")
    manifest = ImageManifest.load(paths.images)
    sources = {"images": manifest.fingerprint}
    if settings.needs_encoder:
        sources["encoder"] = encoder_fingerprint(settings.encoder)
    output = _output(settings, sources)
    processes = Processes.join()
    device = processes.device(choose_device(settings.runtime.device))
    # Entering makes room by putting other latents aside, so models that do not fit are found out before.
    encoder = None if processes.broadcast(output.recorded()) else LatentEncoder(settings, manifest, sources, device)
    with output if processes.is_main else nullcontext():
        if processes.broadcast(output.complete and _is_readable(paths.latents)):
            if processes.is_main:
                say(f"{output.folder} is up to date")
        else:
            encoder = encoder or LatentEncoder(settings, manifest, sources, device)
            writer = _writer(settings, encoder, len(manifest), output.fingerprint)
            if processes.is_main:
                writer.remove_leftovers()
            processes.barrier()
            _write_shards(writer, encoder, settings.latents.batch_size, processes)
            processes.barrier()
            if processes.is_main:
                _write_index(writer, manifest)
                output.finish(images=len(manifest))
    return _summary(settings) if processes.is_main else {}


def _output(settings: Settings, sources: dict[str, str]) -> StageOutput:
    paths = settings.paths
    latents = settings.latents.model_dump(include={"seed", "shard_size", "store_features"})
    models = {"texture_vae": finished_model(open_texture_vae(settings), "sfd train-texture-vae")}
    if settings.semvae.compressor != "none":
        models["semvae"] = finished_model(open_semantic(settings), "sfd train-semvae")
    # A batch size moves a latent by rounding only, so that a run short of memory may go on with a smaller one.
    inert = {"batch_size": settings.latents.batch_size}
    chosen = {"image_size": settings.images.size, **latents}
    return StageOutput(paths.latents, STAGE, chosen, sources | models, paths.metrics, inert)


def _is_readable(folder: Path) -> bool:
    """A finished store may have lost a shard since; then it is made again instead of called up to date."""
    try:
        Store(folder)
    except UserError as error:
        say(f"repairing: {error}")
        return False
    return True


def _writer(settings: Settings, encoder: LatentEncoder, count: int, output_fingerprint: str) -> StoreWriter:
    facts = {
        "encoder": settings.encoder.name,
        "grid": encoder.grid,
        "image_size": settings.images.size,
        "texture_channels": encoder.fields["texture"].shape[1],
        "semantic_channels": encoder.fields["semantic"].shape[1] if "semantic" in encoder.fields else 0,
    }
    shard_size = settings.latents.shard_size
    return StoreWriter(settings.paths.latents, encoder.fields, count, shard_size, output_fingerprint, facts)


def _write_shards(writer: StoreWriter, encoder: LatentEncoder, batch_size: int, processes: Processes) -> None:
    """Encode this process's share of the shards that are not there yet."""
    share = range(processes.rank, writer.shard_count, processes.count)
    finished = writer.finished_shards().intersection(share)
    if finished:
        say(f"going on after {len(finished)} of {len(share)} shards")
    missing = [shard for shard in share if shard not in finished]
    # Batches never cross a shard's end: a resumed run then sees the same batches, and makes the same bytes.
    batches = {shard: _split(writer.rows(shard), batch_size) for shard in missing}
    stream = prefetched(encoder.encode_all([batch for shard in missing for batch in batches[shard]]), ENCODED_AHEAD)
    images = {shard: len(writer.rows(shard)) for shard in share}
    bar = tqdm(
        desc=STAGE,
        total=sum(images.values()),
        initial=sum(images[shard] for shard in finished),
        unit="image",
        disable=None if processes.is_main else True,
    )
    with closing(stream), bar:
        for shard in missing:
            with writer.shard(shard) as file:
                moments: dict[str, list[ChannelMoments]] = {name: [] for name in streams(writer)}
                for batch in batches[shard]:
                    arrays = next(stream)
                    file.write(batch.start - writer.rows(shard).start, arrays)
                    for name in moments:
                        moments[name].append(ChannelMoments.of(arrays[name], CHANNEL_AXIS))
                    bar.update(len(batch))
                for name in moments:
                    file.keep(f"moments_{name}", ChannelMoments.merged(moments[name]).to_array())


def _split(rows: range, size: int) -> list[range]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def streams(writer: StoreWriter) -> list[str]:
    """The streams that the composite latent has, in its order."""
    return [name for name in STREAMS if name in writer.fields]


def _write_index(writer: StoreWriter, manifest: ImageManifest) -> None:
    """The index, with the statistics merged in the order of the shards, whoever wrote them."""
    merged = [
        ChannelMoments.merged(
            ChannelMoments.from_array(writer.extra(shard, f"moments_{name}")) for shard in range(writer.shard_count)
        )
        for name in streams(writer)
    ]
    statistics = {
        "mean": np.concatenate([part.mean for part in merged]),
        "std": np.concatenate([part.std for part in merged]),
    }
    writer.finish(manifest.labels, manifest.files, range(len(manifest)), manifest.classes, statistics)


def _summary(settings: Settings) -> dict[str, Any]:
    store = Store(settings.paths.latents)
    shapes = {name: " x ".join(map(str, field.shape[1:])) for name, field in store.fields.items()}
    std = store.statistics["std"]
    return {
        "images": f"{len(store)}, as they are and flipped",
        **shapes,
        "std of channels": f"{std.min():.3g} to {std.max():.3g}",
        "folder": str(settings.paths.latents),
    }

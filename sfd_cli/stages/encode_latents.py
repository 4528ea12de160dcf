"""`sfd encode-latents`: images and mirror images as composite latents (texture first, semantics last) in HDF5."""

from __future__ import annotations

from functools import partial
from typing import Any

from sfd_cli.artifacts.fingerprints import finished, finished_model
from sfd_cli.artifacts.produce import produce
from sfd_cli.artifacts.recipe import Facts, Recipe
from sfd_cli.config import Settings, identity
from sfd_cli.data.contents import has_contents
from sfd_cli.data.images import ImageManifest
from sfd_cli.data.shards import StoreWriter, split, stream_statistics, write_shards
from sfd_cli.data.store import Store, is_readable
from sfd_cli.distributed.processes import Processes
from sfd_cli.pipeline.encoding import LatentEncoder, precision_facts
from sfd_cli.pipeline.taking_over import taking_over
from sfd_cli.weights.models import open_semantic, open_texture_vae
from sfd_cli.weights.visual_encoders import encoder_fingerprint

STAGE = "encode-latents"
# A batch size moves a latent by rounding only, so that a run short of memory may go on with a smaller one.
FREE = {"batch_size"}


def run(settings: Settings) -> dict[str, Any]:
    """Write the latent store, shard by shard; under torchrun the processes take the shards in turn.

    Images whose latents an earlier store beside it holds, made alike, are not encoded again: see `taking_over`.

    Fields, float16, axis 0 being (as is, flipped): `texture` (2, C_z, h, w), `semantic` (2, C_s, h, w) and, with
    `store_features`, `features` (2, N, D). Statistics of the composite over all that is stored: `mean`, `std`
    (C_z + C_s,). With `images.mirror: false` axis 0 is (as is) alone, and with `semvae.compressor: none` there is no
    `semantic`.

    Returns:
        The summary to print: images, shapes, folder.

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
    recipe = _recipe(settings, sources)

    def load(processes: Processes) -> LatentEncoder:
        device = processes.device(settings.runtime.device)
        return LatentEncoder(settings, manifest, sources, device)

    return produce(
        recipe,
        load,
        partial(_write_store, settings, recipe.fingerprint, manifest),
        metrics=paths.metrics,
        is_done=lambda _: is_readable(paths.latents),
        can_mend=lambda _: True,
        takes_over=has_contents(paths.images),
        tell=lambda _: _summary(settings),
    )


def _recipe(settings: Settings, sources: dict[str, str]) -> Recipe:
    models = {"texture_vae": finished_model(open_texture_vae(settings), "sfd train-texture-vae")}
    if settings.semvae.compressor != "none":
        models["semvae"] = finished_model(open_semantic(settings), "sfd train-semvae")
    return Recipe(
        STAGE,
        settings.paths.latents,
        {
            "image_size": settings.images.size,
            **identity(settings.images, include={"mirror"}),
            **identity(settings.latents, exclude=FREE),
        },
        sources | models,
        free=identity(settings.latents, include=FREE),
    )


def _write_store(
    settings: Settings, fingerprint: str, manifest: ImageManifest, processes: Processes, encoder: LatentEncoder
) -> Facts:
    """Write the shards that are not there yet, then the index over all of them, with the statistics."""
    space, latents = encoder.space, settings.latents
    facts = {
        "encoder": settings.encoder.name,
        "grid": space.grid,
        "image_size": settings.images.size,
        "texture_channels": space.texture,
        "semantic_channels": space.semantic,
    }
    folder, count, keys = settings.paths.latents, len(manifest), encoder.row_keys()
    writer = StoreWriter(folder, encoder.fields, count, latents.shard_size, fingerprint, facts, keys)
    write_shards(
        writer,
        lambda rows: split(rows, latents.batch_size),
        taking_over(writer, encoder.encode_all, STAGE, latents.batch_size, processes),
        doing=STAGE,
        streams=encoder.streams,
        share=(processes.rank, processes.count),
    )
    processes.barrier()
    if processes.is_main:
        writer.require_shards(others=processes.count > 1)
        one_scale = ("texture",) if latents.texture_scale == "stream" else ()
        statistics = stream_statistics(writer, encoder.streams, one_scale)
        # Everyone normalises by these, so that training, sampling and export all see textures of this size.
        statistics["std"][: space.texture] /= latents.texture_gain
        writer.finish(manifest.labels, manifest.files, range(len(manifest)), manifest.classes, statistics)
    return {"images": len(manifest), **precision_facts(encoder.precision)}


def _summary(settings: Settings) -> dict[str, Any]:
    store = Store(settings.paths.latents)
    shapes = {name: " x ".join(map(str, field.shape[1:])) for name, field in store.fields.items()}
    std = store.statistics["std"]
    return {
        "images": f"{len(store)}, as they are{' and flipped' if store.flips > 1 else ''}",
        **shapes,
        "std of channels": f"{std.min():.3g} to {std.max():.3g}",
        "folder": str(settings.paths.latents),
    }

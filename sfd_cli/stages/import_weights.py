"""`sfd weights import` and `export`: files of the reference code to our artifacts, and back."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sfd_cli.data.store import INDEX, Store
from sfd_cli.errors import UserError
from sfd_cli.files import sha256_file
from sfd_cli.stages.output import StageOutput, say
from sfd_cli.weights.foreign import Foreign, Hints, export_model, read_foreign, save_foreign
from sfd_cli.weights.reference_latents import SHARDS, check_latents, export_latents, import_latents, latents_fingerprint
from sfd_cli.weights.sources import joined_statistics, locate, read_statistics, registered_hints

STAGE = "weights import"


def import_model(
    source: str,
    target: Path,
    hints: dict[str, Any],
    texture_statistics: str | None = None,
    semantic_statistics: str | None = None,
) -> dict[str, Any]:
    """A checkpoint of any kind as one of our model folders.

    Args:
        source: a file, a diffusers folder, or a name in the registry, which then tells hints and statistics too.
        target: the folder to write; must not exist.
        hints: what no tensor tells, by the names of `Hints`; None where it is not known.
        texture_statistics: where the statistics of a transformer's texture latents are.
        semantic_statistics: likewise.

    Returns:
        The summary to print.

    Raises:
        UserError: it is of no known kind or does not fit, naming the keys; nothing is written then.
    """
    if target.exists():
        raise UserError(f"{target} exists already; remove it or give another name")
    path = locate(source)
    if not path.exists():
        raise UserError(f"{source} is no file, no folder and no name in `sfd weights list`")
    told = {key: value for key, value in hints.items() if value is not None}
    statistics = read_statistics(source, texture_statistics, semantic_statistics)
    if "semantic" in statistics:
        told = {"semantic_channels": len(statistics["semantic"].mean)} | told
    foreign = read_foreign(path, Hints(**{**registered_hints(source), **told}))
    if foreign.module_type == "LightningDiT":
        foreign = replace(foreign, extra=foreign.extra | joined_statistics(statistics))
        _check_statistics(foreign)
    elif statistics:
        raise UserError(f"{source} holds a {foreign.module_type}; only a transformer takes latent statistics with it")
    if path.is_file():
        foreign = replace(foreign, extra=foreign.extra | {"imported": {"file": path.name, "sha256": sha256_file(path)}})
    save_foreign(foreign, target)
    return _summary(foreign, target)


def import_shards(source: Path, target: Path, encoder: str, image_size: int, num_classes: int | None) -> dict[str, Any]:
    """A folder of the reference's latent shards as our store, which `sfd train` reads; resumes shard by shard.

    Args:
        source: the folder.
        target: of the store.
        encoder: name of the visual encoder behind the semantic latents.
        image_size: side of the images behind the latents, pixels.
        num_classes: of the data set; None: up to the largest label.

    Raises:
        UserError: a shard is damaged or unlike the others, naming it; or `target` holds something else.
    """
    chosen = {"encoder": encoder, "image_size": image_size, "num_classes": num_classes}
    output = StageOutput(target, STAGE, chosen, {"shards": latents_fingerprint(source)}, None)
    if not output.recorded():
        if target.exists():
            raise UserError(f"{target} exists already, from other shards or settings; remove it or give another name")
        check_latents(source, num_classes)
    with output:
        if output.complete:
            say(f"{target} is up to date")
        else:
            images = import_latents(
                source,
                target,
                output.fingerprint,
                encoder=encoder,
                image_size=image_size,
                num_classes=num_classes,
            )
            output.finish(images=images)
    store = Store(target)
    shapes = {name: " x ".join(map(str, field.shape[1:])) for name, field in store.fields.items()}
    return {"images": f"{len(store)}, as they are and flipped", **shapes, "folder": str(target)}


def is_shards(path: Path) -> bool:
    """Whether this is a folder of the reference's latent shards."""
    return path.is_dir() and any(path.glob(SHARDS))


def export(source: Path, target: Path) -> dict[str, Any]:
    """One of our model folders as the reference's file, or a latent store as the reference's shards.

    Raises:
        UserError: it is neither, or `target` exists.
    """
    if (source / INDEX).exists():
        return {"shards": export_latents(source, target), "folder": str(target)}
    return {"kind": export_model(source, target), "file": str(target)}


def _check_statistics(foreign: Foreign) -> None:
    """Raise UserError if there are not as many statistics as channels; say so if there are none."""
    statistics, channels = foreign.extra.get("statistics"), foreign.config.in_channels
    if statistics is None:
        say("no latent statistics were given: without those of its training set nothing it samples can be decoded")
    elif len(statistics["mean"]) != channels:
        raise UserError(
            f"the latent statistics are of {len(statistics['mean'])} channels, but the transformer has {channels};"
            " give those of the textures and of the semantics it was trained on"
        )


def _summary(foreign: Foreign, target: Path) -> dict[str, Any]:
    weights = {stem: sum(tensor.numel() for tensor in tensors.values()) for stem, tensors in foreign.weights.items()}
    config = {key: value for key, value in asdict(foreign.config).items() if foreign.module_type != "LatentStatistics"}
    parameters = {stem: f"{count:,} values" for stem, count in weights.items()}
    return {"kind": foreign.module_type, **config, **parameters, "folder": str(target)}

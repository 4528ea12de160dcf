"""`sfd weights import` and `export`: files of the reference code to our artifacts, and back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sfd_cli.artifacts.output import StageOutput
from sfd_cli.data.store import INDEX, Store
from sfd_cli.errors import UserError
from sfd_cli.files import sha256_file
from sfd_cli.formats.foreign import Foreign, Hints, export_model, read_foreign, save_foreign
from sfd_cli.formats.reference_latents import (
    ATTRIBUTE,
    check_latents,
    export_latents,
    import_latents,
    is_shards,
    latents_fingerprint,
)
from sfd_cli.messages import say
from sfd_cli.weights.models import locate, read_latent_statistics, with_registered
from sfd_cli.weights.registry import Kind

STAGE = "weights import"
MODELS: tuple[Kind, ...] = ("dit", "vae", "semvae", "encoder", "statistics")
# Options that are of use for latent shards only, and those hints that are of use for a model.
OF_SHARDS = ("encoder", "image_size", "num_classes")
HINTS_OF = {"LightningDiT": ("heads", "semantic_channels", "repa_depth", "delta_t"), "SemanticVAE": ("heads",)}


def import_anything(source: str, target: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Whatever `source` is, a folder of latent shards or a model, with the options that were given for it.

    Args:
        source: as of `import_model`, or a folder of the reference's latent shards.
        target: the folder to write.
        options: by their names in `Hints`, `import_model` and `import_shards`; None where one was not given.

    Returns:
        The summary to print.

    Raises:
        UserError: as `import_model` and `import_shards`, or an option has no use for what `source` is.
    """
    told = {key: value for key, value in options.items() if value is not None}
    is_store = is_shards(Path(source))
    useless = [key for key in told if (key in OF_SHARDS) != is_store]
    if useless:
        what = "a folder of latent shards" if is_store else "no folder of latent shards"
        raise UserError(f"{source} is {what}, for which {_flags(useless)} can do nothing; leave it out")
    if is_store:
        return import_shards(Path(source), target, **told)
    statistics = {key: told.pop(key, None) for key in ("texture_statistics", "semantic_statistics")}
    return import_model(source, target, told, **statistics)


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
    path = locate(source, *MODELS)
    if not path.exists():
        raise UserError(f"{source} is no file, no folder and no name in `sfd weights list`")
    told = {key: value for key, value in hints.items() if value is not None}
    places = {"texture_statistics": texture_statistics, "semantic_statistics": semantic_statistics}
    given: dict[str, Any] = {key: read_latent_statistics(place) for key, place in places.items() if place is not None}
    known = with_registered(Hints(**(told | given)), source)
    semantic = known.semantic_statistics
    shown = {} if semantic is None else {"semantic_channels": len(semantic.mean)}
    foreign = read_foreign(path, known)
    _check_hints(source, foreign, told, shown)
    if foreign.module_type == "LightningDiT":
        _check_statistics(foreign)
    elif known.texture_statistics or semantic:
        raise UserError(f"{source} holds a {foreign.module_type}; only a transformer takes latent statistics with it")
    if path.is_file():
        foreign = replace(foreign, extra=foreign.extra | {"imported": {"file": path.name, "sha256": sha256_file(path)}})
    save_foreign(foreign, target)
    return _summary(foreign, target)


def import_shards(
    source: Path,
    target: Path,
    encoder: str = "dinov2_vitb14_reg",
    image_size: int = 256,
    num_classes: int | None = None,
) -> dict[str, Any]:
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
        if target.exists() and not _is_empty(target):
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
    statistics = "published" if store.attributes[ATTRIBUTE]["statistics"] else "computed"
    both = f"{len(store)}, as they are and flipped"
    return {"images": both, **shapes, "statistics": statistics, "folder": str(target)}


def export(source: Path, target: Path) -> dict[str, Any]:
    """One of our model folders as the reference's file, or a latent store as the reference's shards.

    Raises:
        UserError: it is neither, or `target` exists.
    """
    if source.is_file():
        raise UserError(f"{source} is a file; give the model folder or latent store to export")
    if (source / INDEX).exists():
        return {"shards": export_latents(source, target), "folder": str(target)}
    kind, (file, *beside) = export_model(source, target)
    statistics = {"statistics": " and ".join(map(str, beside))} if beside else {}
    return {"kind": kind, "file": str(file), **statistics}


def _is_empty(folder: Path) -> bool:
    """Whether nothing is in there but what a run that was killed before its first record leaves."""
    return folder.is_dir() and not any(path for path in folder.iterdir() if not path.match(".*.tmp"))


def _flags(keys: Iterable[str]) -> str:
    return " and ".join(f"--{key.replace('_', '-')}" for key in keys)


def _check_hints(source: str, foreign: Foreign, told: dict[str, Any], shown: dict[str, Any]) -> None:
    """Raise UserError for hints that were given and are of no use for the file, or that it or statistics contradict.

    Args:
        source: named in the message.
        foreign: what was read.
        told: hints of `import_model`.
        shown: those that statistics tell.
    """
    kind, config = foreign.module_type, foreign.config
    useless = [key for key in told if key not in HINTS_OF.get(kind, ())]
    if useless:
        raise UserError(f"{source} holds a {kind}, for which {_flags(useless)} can do nothing; leave it out")
    if kind != "LightningDiT":
        return
    problems = []
    if told.get("heads", config.heads) != config.heads:
        problems.append(f"--heads {told['heads']}, but its q/k norms are of {config.heads} heads")
    for key, value in shown.items():
        if told.get(key, value) != value:
            problems.append(f"{_flags([key])} {told[key]}, but the statistics are of {value}")
    if "repa_depth" in told and not config.repa_depth:
        problems.append(f"--repa-depth {told['repa_depth']}, but it has no REPA projector")
    if told.get("delta_t") and config.time_embedding == "single":
        problems.append(f"--delta-t {told['delta_t']:g}, but it has one time for both streams")
    if problems:
        raise UserError(f"{source}: {' and '.join(problems)}; leave it out")


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

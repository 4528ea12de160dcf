"""`sfd weights import`: files of other code as our artifacts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sfd_cli.artifacts.produce import produce
from sfd_cli.artifacts.recipe import Facts, Recipe
from sfd_cli.data.store import Store
from sfd_cli.distributed.processes import Processes
from sfd_cli.errors import UserError
from sfd_cli.formats.files import hints_of, read_file
from sfd_cli.formats.format import Hints, ModelParts
from sfd_cli.formats.model_folder import save_parts
from sfd_cli.formats.reference_latents import ATTRIBUTE, check_latents, import_latents, latents_fingerprint
from sfd_cli.formats.reference_shards import is_shards
from sfd_cli.messages import say
from sfd_cli.networks.lightning_dit import LightningDiTConfig
from sfd_cli.weights.fetch import digest
from sfd_cli.weights.models import locate, read_latent_statistics, with_registered
from sfd_cli.weights.registry import Kind

STAGE = "weights import"
MODELS: tuple[Kind, ...] = ("dit", "vae", "semvae", "encoder", "statistics")
# Options that are of use for latent shards only.
OF_SHARDS = ("encoder", "image_size", "num_classes")
STATISTICS = ("texture_statistics", "semantic_statistics")


def import_anything(source: str, target: Path, options: dict[str, Any]) -> dict[str, Any]:
    """A folder of latent shards as our store, or a model as one of our folders, by the options that were given for it.

    Args:
        source: a folder of the reference's latent shards, a checkpoint, a diffusers folder, or a registered name,
            which brings its own hints and statistics.
        target: the folder to write.
        options: fields of `Hints`, of which the statistics are places, or arguments of `import_shards`; None where one
            was not given.

    Returns:
        The summary to print.

    Raises:
        UserError: as `import_model` and `import_shards`, or an option is of no use for what `source` is.
    """
    given = {key: value for key, value in options.items() if value is not None}
    is_store = is_shards(Path(source))
    useless = [key for key in given if (key in OF_SHARDS) != is_store]
    if useless:
        what = "a folder of latent shards" if is_store else "no folder of latent shards"
        raise UserError(_flags(useless), f"of no use for {source}, which is {what}", "leave it out")
    return import_shards(Path(source), target, **given) if is_store else import_model(source, target, given)


def import_model(source: str, target: Path, given: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint of any kind as one of our model folders; arguments as of `import_anything`.

    Raises:
        UserError: it is of no known kind or does not fit, naming the keys; nothing is written then.
    """
    if target.exists():
        raise UserError(target, "exists already", "remove it or give another name")
    path = locate(source, *MODELS)
    if not path.exists():
        raise UserError(source, "is no file, no folder and no name in `sfd weights list`", "check it")
    read: dict[str, Any] = {
        key: read_latent_statistics(given[key]) if key in STATISTICS else given[key] for key in given
    }
    known = with_registered(Hints(**read), source)
    model = read_file(path, known)
    _check_hints(source, model, {key: value for key, value in given.items() if key not in STATISTICS}, known)
    if path.is_file():
        model = replace(model, facts=model.facts | {"imported": {"file": path.name, "sha256": digest(path)}})
    save_parts(model, target)
    return _summary(model, target)


def import_shards(
    source: Path,
    target: Path,
    encoder: str = "dinov2_vitb14_reg",
    image_size: int = 256,
    num_classes: int | None = None,
) -> dict[str, Any]:
    """A folder of latent shards as a store, by the arguments of `import_latents`; resumes shard by shard.

    Raises:
        UserError: a shard is damaged or unlike the others, naming it; or `target` holds something else.
    """
    settings: dict[str, Any] = {"encoder": encoder, "image_size": image_size, "num_classes": num_classes}
    recipe = Recipe(STAGE, target, settings, {"shards": latents_fingerprint(source)})

    def load(_: Processes) -> None:
        if target.exists() and not _is_empty(target) and not recipe.matches_disk():
            raise UserError(target, "exists already, from other shards or settings", "remove it or give another name")
        check_latents(source, num_classes)

    def make(_: Processes, __: None) -> Facts:
        return {"images": import_latents(source, target, recipe.fingerprint, **settings)}

    produce(recipe, load, make, can_mend=lambda _: True)
    store = Store(target)
    shapes = {name: " x ".join(map(str, field.shape[1:])) for name, field in store.fields.items()}
    statistics = "published" if store.attributes[ATTRIBUTE]["statistics"] else "computed"
    both = f"{len(store)}, as they are and flipped"
    return {"images": both, **shapes, "statistics": statistics, "folder": str(target)}


def _is_empty(folder: Path) -> bool:
    """Whether nothing is in there but what a run that was killed before its first record leaves."""
    return folder.is_dir() and not any(path for path in folder.iterdir() if not path.match(".*.tmp"))


def _flags(keys: Iterable[str]) -> str:
    return " and ".join(f"--{key.replace('_', '-')}" for key in keys)


def _check_hints(source: str, model: ModelParts, given: dict[str, Any], known: Hints) -> None:
    """Raise UserError for hints in `given` that are of no use for the model, or that it or statistics contradict."""
    statistics = [part for part in (known.texture_statistics, known.semantic_statistics) if part is not None]
    useless = [key for key in given if key not in hints_of(model.kind)]
    if useless:
        raise UserError(_flags(useless), f"of no use for {source}, which holds a {model.kind}", "leave it out")
    if model.kind != "LightningDiT":
        if statistics:
            problem = f"holds a {model.kind}, and only a transformer takes latent statistics with it"
            raise UserError(source, problem, "leave them out")
        return
    for flag, problem in _contradictions(model.config, given, known):
        raise UserError(flag, f"{problem} in {source}", "leave it out")
    channels = sum(len(part.mean) for part in statistics)
    if not statistics:
        say("no latent statistics: without those of its training set nothing that it samples can be decoded")
    elif channels != model.config.in_channels:
        problem = f"has {model.config.in_channels} channels, but the latent statistics are of {channels}"
        raise UserError(source, problem, "give those of the textures and of the semantics it was trained on")


def _contradictions(config: LightningDiTConfig, given: dict[str, Any], known: Hints) -> Iterator[tuple[str, str]]:
    """Flags with values that a transformer or its statistics contradict, and what they are instead."""
    if given.get("heads", config.heads) != config.heads:
        yield "--heads", f"is {given['heads']}, but the q/k norms are of {config.heads} heads"
    semantic = known.semantic_statistics
    if semantic is not None and given.get("semantic_channels", len(semantic.mean)) != len(semantic.mean):
        yield "--semantic-channels", f"is {given['semantic_channels']}, but the statistics are of {len(semantic.mean)}"
    if "repa_depth" in given and not config.repa_depth:
        yield "--repa-depth", f"is {given['repa_depth']}, but there is no REPA projector"
    if given.get("delta_t") and config.time_embedding == "single":
        yield "--delta-t", f"is {given['delta_t']:g}, but there is one time for both streams"


def _summary(model: ModelParts, target: Path) -> dict[str, Any]:
    config = {} if model.kind == "LatentStatistics" else asdict(model.config)
    parameters = {
        stem: f"{sum(tensor.numel() for tensor in tensors.values()):,} values"
        for stem, tensors in model.weights.items()
    }
    return {"kind": model.kind, **config, **parameters, "folder": str(target)}

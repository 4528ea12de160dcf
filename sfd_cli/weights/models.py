"""The one door to models: whatever a source is, what comes back is one of our model folders.

A source is a folder made here, a file or folder of other code, a registered name, or an adapter and its base. Files of
other code are converted once, into the cache, under a key of their digest and of the hints that their formats use.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, cast

from torch import nn

from sfd_cli.config import Settings
from sfd_cli.diffusion.conditions import Conditions
from sfd_cli.diffusion.latents import LatentSpace
from sfd_cli.errors import UserError
from sfd_cli.files import fingerprint
from sfd_cli.formats.adapter_folder import AdapterFolder, is_adapter
from sfd_cli.formats.files import hints_of, read_file
from sfd_cli.formats.format import Hints, about
from sfd_cli.formats.model_folder import (
    CONFIG,
    ONLY_WEIGHTS,
    compressors,
    configured,
    load_config,
    save_parts,
    texture_compressors,
    type_of,
)
from sfd_cli.formats.reference_statistics import LatentStatistics
from sfd_cli.networks.lightning_dit import LightningDiT
from sfd_cli.networks.semantic_pca import SemanticPCA
from sfd_cli.networks.semantic_vae import SemanticVAE
from sfd_cli.networks.texture_pca import TexturePCA
from sfd_cli.networks.texture_vae import TextureVAE
from sfd_cli.weights.adapted import adapted
from sfd_cli.weights.fetch import cache_folder, digest, fetch_weights, sole_writer
from sfd_cli.weights.model import M, Model
from sfd_cli.weights.registry import REGISTRY, Kind, find_weights

SemanticCompressor = SemanticVAE | SemanticPCA
TextureCompressor = TextureVAE | TexturePCA

CONVERTED = "converted"
CONVERTER_VERSION = 1
"""Part of the key of converted models; raised when a converter gives something else than before."""

REGISTERED_AS: dict[str, Kind] = {
    "LightningDiT": "dit",
    "SemanticVAE": "semvae",
    "TextureVAE": "vae",
    "LatentStatistics": "statistics",
}


def open_dit(settings: Settings, which: Literal["dit", "guide"] = "dit") -> Model[LightningDiT]:
    """The transformer at `paths.<which>`; the section `foreign` holds the hints for a checkpoint of the reference.

    `sample.weights` says whether averaged or last weights are wanted.
    """
    section = settings.foreign
    hints = Hints(
        heads=section.heads if which == "dit" else section.guide_heads,
        semantic_channels=section.semantic_channels,
        delta_t=section.delta_t,
    )
    statistics = section.texture_statistics, section.semantic_statistics
    return open_model(getattr(settings.paths, which), LightningDiT, hints, settings.sample.weights, statistics)


def space_of(dit: Model[LightningDiT]) -> LatentSpace:
    """The latents that a transformer was trained on; without a scale where its folder has none for every channel."""
    space, statistics = dit.config.space, dit.facts.get("statistics") or {}
    try:
        return space.scaled(statistics["mean"], statistics["std"])
    except (KeyError, TypeError, ValueError):
        return space


def conditions_of(dit: Model[LightningDiT]) -> Conditions:
    """The classes that a transformer knows, by number where its folder has no names."""
    names: list[Any] | None = dit.facts.get("classes")
    return dit.config.conditions if names is None else Conditions(tuple(map(str, names)))


def open_texture_vae(
    settings: Settings, channels: int | None = None, source: str | Path | None = None
) -> Model[TextureCompressor]:
    """The texture compressor at `paths.texture_vae`, or at `source`, of any kind in TEXTURE_COMPRESSORS.

    Args:
        settings: where it is, and how the latent of a file of other code is folded.
        channels: texture channels of the transformer whose latents it is to decode: they tell the folding better.
        source: another place.
    """
    hints = Hints(texture_channels=channels)
    if channels is None:
        hints = Hints(space_to_depth=settings.texture_vae.space_to_depth)
    return open_model(source or settings.paths.texture_vae, tuple(texture_compressors()), hints)


def open_semantic(settings: Settings, source: str | Path | None = None) -> Model[SemanticCompressor]:
    """The semantic compressor at `paths.semvae`, or at `source`, of any kind in COMPRESSORS.

    Raises:
        UserError: as `open_model`, or a file of other code is of another size than the section `semvae`, whose number
            of heads is therefore another model's.
    """
    source, section = source or settings.paths.semvae, settings.semvae
    hints = Hints(tiles=settings.encoder.tiles)
    if not is_registered(source):
        sizes = {"channels": section.channels, "width": section.width, "depth": section.depth}
        hints = replace(hints, heads=section.heads, sizes=sizes)
    return open_model(source, tuple(compressors()), hints)


def open_model(
    source: str | Path,
    kind: type[M] | tuple[type[nn.Module], ...],
    hints: Hints | None = None,
    weights: str | None = None,
    statistics: tuple[str | None, str | None] = (None, None),
) -> Model[M]:
    """The model that `source` names, as one of our folders.

    Args:
        source: a model folder, a file or folder of other code, registered weights, or the folder of an adapter.
        kind: class of the network, or the accepted classes, the one that has other formats first.
        hints: what a file of other code does not tell. Our own folders tell it all.
        weights: which set of weights, "ema" or "model"; None: the averaged ones where there are any. A component of a
            saved pipeline has one set only, which it is then.
        statistics: where the latent statistics of a transformer of other code are, texture and semantic.

    Raises:
        UserError: it is missing, damaged or something else, or a hint is needed.
    """
    kinds = [one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,))]
    if is_adapter(source) and LightningDiT.__name__ in kinds:
        return cast(Model[M], adapted(str(source), AdapterFolder.open(Path(source)), _base_of))
    folder = _model_folder(source, kinds, hints or Hints(), statistics)
    if (folder / f"{ONLY_WEIGHTS}.safetensors").exists():
        weights = ONLY_WEIGHTS
    elif weights is None:
        weights = "ema" if (folder / "ema.safetensors").exists() else "model"
    return Model(str(source), folder, weights)


def _base_of(adapter: AdapterFolder) -> Model[LightningDiT]:
    """The transformer that an adapter names; its own architecture gives what a file of other code does not say."""
    network = adapter.network
    return open_model(adapter.base, LightningDiT, Hints(network.heads, semantic_channels=network.semantic_channels))


def read_latent_statistics(source: str | Path) -> LatentStatistics:
    """Mean and std of every channel from the reference's `.pt`, a folder imported from it, or registered weights.

    Raises:
        UserError: it is missing or something else.
    """
    folder = _model_folder(source, [LatentStatistics.__name__], Hints())
    with about(folder / CONFIG):
        return configured(LatentStatistics, load_config(folder)["config"])


def _model_folder(
    source: str | Path, kinds: list[str], hints: Hints, statistics: tuple[str | None, str | None] = (None, None)
) -> Path:
    """The model folder that `source` is, or that it is converted to; the only place that asks which of both it is.

    Args:
        source: as of `open_model`.
        kinds: types of model that are accepted, the one that has other formats first.
        hints: what a file of other code does not tell.
        statistics: as of `open_model`; looked for only where they are needed.
    """
    path = locate(source, REGISTERED_AS[kinds[0]])
    found = type_of(path)
    if found in kinds:
        return path
    if found is not None:
        raise UserError(path, f"holds a {found}, but a {' or '.join(kinds)} is wanted", "check the path")
    hints = with_registered(_with_statistics(hints, *statistics), source)
    files = [path] if path.is_file() else sorted([*path.glob("*.safetensors"), *path.glob(CONFIG)])
    used = asdict(hints)
    identity = {
        "kind": kinds[0],
        "files": [digest(file) for file in files],
        "hints": {name: used[name] for name in hints_of(kinds[0])},
        "converter": CONVERTER_VERSION,
    }
    key = fingerprint(identity)[:32]
    folder = cache_folder() / CONVERTED / key
    with sole_writer(folder):
        if not (folder / CONFIG).exists():
            parts = read_file(path, hints, kinds[0])
            temporary = folder.with_name(f".{key}.tmp")
            for leftover in (temporary, folder):  # of a killed run, or of one who tidied up
                shutil.rmtree(leftover, ignore_errors=True)
            try:
                save_parts(parts, temporary)
                temporary.rename(folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return folder


def locate(source: str | Path, *kinds: Kind) -> Path:
    """Where `source` is: a path that exists as it stands, else registered weights of that name, fetched.

    A missing path is returned unchanged; opening it raises the error.

    Args:
        source: a path, or a name in the registry.
        kinds: of which the registered weights must be; none: of any.

    Raises:
        UserError: registered weights that cannot be had, or of another kind, which are not fetched.
    """
    if not is_registered(source):
        return Path(source)
    weights = find_weights(str(source), *kinds)
    return fetch_weights(weights)


def is_registered(source: str | Path) -> bool:
    """Whether it is the name of published weights, and no path that exists."""
    return str(source) in REGISTRY and not Path(source).exists()


def with_registered(hints: Hints, source: str | Path) -> Hints:
    """The hints, completed with what the registry knows about the weights of this name."""
    if not is_registered(source):
        return hints
    entry = REGISTRY[str(source)]
    known = {key: value for key, value in entry.hints.items() if getattr(hints, key) is None}
    return _with_statistics(replace(hints, **known), *(entry.statistics or (None, None)))


def _with_statistics(hints: Hints, texture: str | None, semantic: str | None) -> Hints:
    """The hints, and the latent statistics at these places where there are none yet."""
    if texture is not None and hints.texture_statistics is None:
        hints = replace(hints, texture_statistics=read_latent_statistics(texture))
    if semantic is not None and hints.semantic_statistics is None:
        hints = replace(hints, semantic_statistics=read_latent_statistics(semantic))
    return hints

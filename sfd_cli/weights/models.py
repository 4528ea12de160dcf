"""The models that settings name: one of our folders, a checkpoint of other code, or registered weights.

Whatever reads a model opens it here, so that every stage takes published files as they are.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from sfd_cli.config import SemVAE, Settings
from sfd_cli.errors import UserError
from sfd_cli.formats.convert import LatentStatistics, load_statistics
from sfd_cli.formats.foreign import Foreign, Hints, is_diffusers_folder, read_foreign
from sfd_cli.formats.model_folder import (
    TABLES,
    fill_buffers,
    load_dit,
    load_semantic,
    load_texture_vae,
)
from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig
from sfd_cli.networks.semantic_pca import SemanticPCA
from sfd_cli.networks.semantic_vae import SemanticVAE, SemanticVAEConfig
from sfd_cli.networks.texture_vae import TextureVAE
from sfd_cli.weights.fetch import fetch
from sfd_cli.weights.registry import REGISTRY, Kind

SemanticCompressor = SemanticVAE | SemanticPCA


def locate(source: str | Path, *kinds: Kind) -> Path:
    """Where `source` is: a path that exists as it stands, else registered weights of that name, fetched.

    A path that does not exist comes back as it is, for the one who opens it to complain about.

    Args:
        source: a path, or a name in the registry.
        kinds: of which the registered weights must be; none: of any.

    Raises:
        UserError: registered weights that cannot be had, or of another kind, which are not fetched.
    """
    if not Path(source).exists() and str(source) in REGISTRY:
        return fetch(str(source), *kinds)
    return Path(source)


def is_foreign(path: Path) -> bool:
    """Whether this is somebody else's file or diffusers folder, and not one of our model folders."""
    return path.is_file() or is_diffusers_folder(path)


def open_dit(settings: Settings, which: Literal["dit", "guide"] = "dit") -> tuple[LightningDiT, dict[str, Any]]:
    """The transformer at `paths.<which>` and its extra keys (statistics, delta_t, classes ...), on the CPU, frozen.

    The section `foreign` and the registry tell of a checkpoint of the reference code what it does not tell itself;
    `sample.weights` says whether averaged or last weights are wanted.

    Raises:
        UserError: it is missing, damaged or something else, or a hint is needed.
    """
    weights, path = settings.sample.weights, locate(getattr(settings.paths, which), "dit")
    if not is_foreign(path):
        return load_dit(path, weights)
    found, statistics = read_foreign_dit(settings, which)
    if weights not in found.weights:
        present = ", ".join(stem for stem in found.weights if not stem.endswith(TABLES))
        raise UserError(f"{path} holds no {weights!r} weights, only {present}; choose with --weights {present}")
    network = _filled(LightningDiT(found.config), found.weights[weights])
    fill_buffers(network, found.weights.get(f"{weights}{TABLES}", {}), str(path))
    return network, found.extra | joined_statistics(statistics)


def read_foreign_dit(settings: Settings, which: Literal["dit", "guide"]) -> tuple[Foreign, dict[str, LatentStatistics]]:
    """A transformer of the reference code with what is told about it, and the statistics of its latents by stream."""
    source, told = getattr(settings.paths, which), settings.foreign
    statistics = read_statistics(source, told.texture_statistics, told.semantic_statistics)
    heads = told.heads if which == "dit" else told.guide_heads
    channels = told.semantic_channels
    if channels is None and "semantic" in statistics:
        channels = len(statistics["semantic"].mean)
    hints = {"heads": heads, "semantic_channels": channels, "delta_t": told.delta_t}
    given = {key: value for key, value in hints.items() if value is not None}
    found = read_foreign(locate(source, "dit"), Hints(**{**registered_hints(source), **given}), "LightningDiT")
    return found, statistics


def registered_hints(source: str | Path) -> dict[str, Any]:
    """What the registry knows about weights named by their registered name, for `Hints`."""
    entry = REGISTRY.get(str(source))
    return {} if entry is None else dict(entry.hints)


def joined_statistics(statistics: dict[str, LatentStatistics]) -> dict[str, Any]:
    """`statistics` of a transformer's `config.json`, textures first; nothing where there are none."""
    parts = [statistics[name] for name in ("texture", "semantic") if name in statistics]
    joined = {key: [value for part in parts for value in getattr(part, key)] for key in ("mean", "std")}
    return {"statistics": joined} if parts else {}


def initial_weights(key: str, source: str, config: LightningDiTConfig) -> dict[str, Tensor]:
    """Averaged weights of a transformer of the architecture `config`, to start training from; `key` names the setting.

    Raises:
        UserError: it is missing, damaged or of another architecture; names what differs.
    """
    path = locate(source, "dit")
    if is_foreign(path):
        hints = Hints(config.heads, config.semantic_channels, config.repa_depth or Hints.repa_depth)
        foreign = read_foreign(path, hints, "LightningDiT")
        found, weights = foreign.config, next(iter(foreign.weights.values()))
    else:
        network, _ = load_dit(path)
        found, weights = network.config, network.state_dict()
    wrong = [
        f"{key} {value} instead of {asdict(config)[key]}"
        for key, value in asdict(found).items()
        if value != asdict(config)[key]
    ]
    if wrong:
        raise UserError(f"{key}: {path} has another architecture than the settings: {', '.join(wrong)}")
    return weights


def open_semantic(settings: Settings) -> SemanticCompressor:
    """The Semantic VAE or principal components at `paths.semvae`, on the CPU, frozen.

    Raises:
        UserError: it is missing, damaged or something else, or a reference checkpoint of another size than the
            section `semvae` says.
    """
    return read_semantic(settings.paths.semvae, settings.semvae, settings.encoder.tiles)


def read_semantic(source: str | Path, section: SemVAE, tiles: int) -> SemanticCompressor:
    """As `open_semantic`, from anywhere; `tiles` of the encoder, for a checkpoint of the reference code."""
    path = locate(source, "semvae")
    if not is_foreign(path):
        return load_semantic(path)[0]
    foreign = read_foreign(path, Hints(**{"heads": section.heads, **registered_hints(source)}), "SemanticVAE")
    found = foreign.config
    told = SemanticVAEConfig(found.feature_width, section.channels, section.width, section.depth, section.heads)
    if found != told:
        raise UserError(
            f"{path} is a Semantic VAE with channels {found.channels}, width {found.width}, depth {found.depth} and"
            f" {found.heads} heads; set these in the section semvae (no tensor tells the heads)"
        )
    return _filled(SemanticVAE(replace(found, tiles=tiles)), foreign.weights["model"])


def open_texture_vae(settings: Settings, channels: int | None = None) -> TextureVAE:
    """The texture VAE at `paths.texture_vae`, on the CPU, frozen.

    Args:
        settings: where it is.
        channels: texture channels of the transformer whose latents it is to decode: they tell how a foreign file's
            latent is folded. Without them `texture_vae.space_to_depth` does.

    Raises:
        UserError: it is missing, damaged or something else.
    """
    return read_texture_vae(settings.paths.texture_vae, settings.texture_vae.space_to_depth, channels)


def read_texture_vae(source: str | Path, space_to_depth: int, channels: int | None = None) -> TextureVAE:
    """As `open_texture_vae`, from anywhere; a foreign file's latent is folded by `space_to_depth`, or to `channels`."""
    path = locate(source, "vae")
    if not is_foreign(path):
        return load_texture_vae(path)[0]
    found = read_foreign(path, Hints(), "TextureVAE")
    if channels is not None:
        fold = math.isqrt(channels // found.config.channels)
        space_to_depth = fold if fold * fold * found.config.channels == channels else 1
    return _filled(TextureVAE(replace(found.config, space_to_depth=space_to_depth)), found.weights["model"])


def read_statistics(source: str | Path, texture: str | None, semantic: str | None) -> dict[str, LatentStatistics]:
    """Statistics by stream from where `texture` and `semantic` say, else as the registry knows for `source`."""
    told = {"texture": texture, "semantic": semantic}
    entry = REGISTRY.get(str(source))
    if entry is not None and entry.statistics is not None:
        known = dict(zip(("texture", "semantic"), entry.statistics, strict=True))
        told = {name: told[name] or known[name] for name in told}
    return {name: read_latent_statistics(place) for name, place in told.items() if place is not None}


def read_latent_statistics(source: str | Path) -> LatentStatistics:
    """Mean and std of every channel from the reference's `.pt`, a folder imported from it, or registered weights.

    Raises:
        UserError: it is missing or something else.
    """
    path = locate(source, "statistics")
    if path.is_file():
        return read_foreign(path, Hints(), "LatentStatistics").config
    return load_statistics(path)


def _filled(module: Any, weights: dict[str, Any]) -> Any:
    assert isinstance(module, nn.Module)
    module.load_state_dict(weights)
    return module.eval().requires_grad_(False)

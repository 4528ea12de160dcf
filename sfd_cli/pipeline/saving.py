"""A pipeline as a folder that both this package and diffusers open: see `layout`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from sfd_cli import __version__
from sfd_cli.errors import UserError
from sfd_cli.files import atomic_path, write_json
from sfd_cli.formats.diffusers import write_autoencoder
from sfd_cli.formats.dinov2 import VisualEncoderConfig
from sfd_cli.formats.model_folder import ONLY_WEIGHTS, dit_weights, save_model
from sfd_cli.laws import law_fact
from sfd_cli.networks.lightning_dit import LightningDiT
from sfd_cli.networks.texture_vae import TextureVAE
from sfd_cli.networks.visual_encoder import VisualEncoder
from sfd_cli.pipeline.arguments import NOT_TAKEN_OVER
from sfd_cli.pipeline.card import Card
from sfd_cli.pipeline.layout import (
    ADAPTER,
    ADAPTER_MODULE,
    CODE,
    COMPRESSOR_CLASS,
    ENCODER_ENTRY,
    FOLDERS,
    INDEX,
    MODELS_MODULE,
    OURS,
    SCHEDULER,
    SCHEDULER_CLASS,
    SCHEDULER_CONFIG,
    SOLVING,
    TRANSFORMER_CLASS,
)
from sfd_cli.pipeline.sampler import Sampler
from sfd_cli.weights.models import SemanticCompressor, TextureCompressor

NOTHING = [None, None]
"""What an index says of a component that is not there."""

CODE_TEXT = f'''"""What diffusers loads this pipeline with: `pip install sfd-cli` has the code."""

from {ADAPTER_MODULE} import {ADAPTER}  # noqa: F401
'''


def require_empty(folder: Path) -> None:
    """Raise UserError where the folder holds something already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(folder, "is not empty", "give another name or empty it")


def save(
    folder: Path, sampler: Sampler, semantic: SemanticCompressor | None, encoder: VisualEncoder | None, card: Card
) -> None:
    """Write the components as safetensors and JSON; the index comes last, so that a folder that has one is whole.

    Raises:
        UserError: the folder holds something already.
    """
    require_empty(folder)
    sample = sampler.sample.model_dump(mode="json", exclude=NOT_TAKEN_OVER)
    index: dict[str, Any] = {"_class_name": [CODE, ADAPTER], "_sfd_version": __version__}
    index[FOLDERS["dit"]] = save_transformer(folder / FOLDERS["dit"], sampler.dit, _facts(sampler))
    guide, vae = sampler.guide, sampler.texture_vae
    index["guide"] = NOTHING if guide is None else save_transformer(folder / FOLDERS["guide"], guide, {})
    index[FOLDERS["texture_vae"]] = NOTHING if vae is None else _save_compressor(folder / FOLDERS["texture_vae"], vae)
    index[SCHEDULER] = [MODELS_MODULE, SCHEDULER_CLASS]
    solving = {"_class_name": SCHEDULER_CLASS} | {key: sample[key] for key in SOLVING}
    write_json(folder / SCHEDULER / SCHEDULER_CONFIG, solving)
    index["sample"] = {key: value for key, value in sample.items() if key not in SOLVING}
    if semantic is not None:
        _save(folder / FOLDERS["semantic"], semantic, semantic.config)
        index[OURS["semantic"]] = type(semantic).__name__
    if encoder is not None:
        _save(folder / FOLDERS["encoder"], encoder, VisualEncoderConfig(encoder.name), encoder.network)
        index[OURS["encoder"]] = {key: getattr(encoder, key) for key in ENCODER_ENTRY}
    _write_text(folder / f"{CODE}.py", CODE_TEXT)
    card.write(folder)
    write_json(folder / INDEX, index)


def save_transformer(folder: Path, network: LightningDiT, facts: Mapping[str, Any]) -> list[str]:
    """Write a transformer as a component; gives the library and the class by which diffusers loads it."""
    weights = dit_weights(network, ONLY_WEIGHTS)
    save_model(folder, "LightningDiT", network.config, weights, {"_class_name": TRANSFORMER_CLASS} | dict(facts))
    return [MODELS_MODULE, TRANSFORMER_CLASS]


def _save_compressor(folder: Path, network: TextureCompressor) -> list[str]:
    if isinstance(network, TextureVAE):
        write_autoencoder(network, folder)
        return ["diffusers", "AutoencoderKL"]
    _save(folder, network, network.config, _class_name=COMPRESSOR_CLASS)
    return [MODELS_MODULE, COMPRESSOR_CLASS]


def _save(folder: Path, network: nn.Module, config: Any, weights: nn.Module | None = None, **facts: str) -> None:
    state = (network if weights is None else weights).state_dict()
    save_model(folder, type(network).__name__, config, {ONLY_WEIGHTS: state}, facts)


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _facts(sampler: Sampler) -> dict[str, Any]:
    """What the transformer's folder says beside its architecture, as far as it is known."""
    known = {} if sampler.trained_law is None else law_fact(sampler.trained_law)
    facts: dict[str, Any] = known | {"classes": list(sampler.conditions.names)}
    if sampler.space.is_scaled:
        facts["statistics"] = sampler.space.statistics
    if sampler.texture_vae is not None:
        facts["image_size"] = sampler.image_size
    return facts

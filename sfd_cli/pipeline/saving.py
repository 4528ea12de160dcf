"""A pipeline as a folder: one model folder a component, and `model_index.json` about them all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sfd_cli import __version__
from sfd_cli.errors import UserError
from sfd_cli.files import read_json, write_json
from sfd_cli.formats.dinov2 import VisualEncoderConfig
from sfd_cli.formats.model_folder import dit_weights, save_model
from sfd_cli.laws import law_fact
from sfd_cli.networks.visual_encoder import VisualEncoder
from sfd_cli.pipeline.arguments import NOT_OF_A_CALL
from sfd_cli.pipeline.sampler import Sampler
from sfd_cli.weights.models import SemanticCompressor

INDEX = "model_index.json"
COMPONENTS = ("dit", "guide", "texture_vae", "semantic", "encoder")
# What the index tells of the encoder, whose folder holds its weights only.
ENCODER_ENTRY = ("name", "image_size", "tiles")


def save(
    folder: Path, class_name: str, sampler: Sampler, semantic: SemanticCompressor | None, encoder: VisualEncoder | None
) -> None:
    """Write the components as safetensors and JSON; the index comes last, so that a folder that has one is whole.

    Raises:
        UserError: the folder holds something already.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(folder, "is not empty", "give another name or empty it")
    index: dict[str, Any] = {
        "_class_name": class_name,
        "_sfd_version": __version__,
        "sample": sampler.sample.model_dump(mode="json", exclude=set(NOT_OF_A_CALL)),
    }
    vae, guide = sampler.texture_vae, sampler.guide
    if vae is not None:
        save_model(folder / "texture_vae", type(vae).__name__, vae.config, {"model": vae.state_dict()}, {})
    save_model(folder / "dit", "LightningDiT", sampler.dit.config, dit_weights(sampler.dit, "ema"), _facts(sampler))
    if guide is not None:
        save_model(folder / "guide", "LightningDiT", guide.config, dit_weights(guide, "ema"), {})
    if semantic is not None:
        state = {"model": semantic.state_dict()}
        save_model(folder / "semantic", type(semantic).__name__, semantic.config, state, {})
    if encoder is not None:
        config = VisualEncoderConfig(encoder.name)
        save_model(folder / "encoder", "VisualEncoder", config, {"model": encoder.network.state_dict()}, {})
        index["encoder"] = {key: getattr(encoder, key) for key in ENCODER_ENTRY}
    parts = {"dit": sampler.dit, "texture_vae": vae, "guide": guide, "semantic": semantic, "encoder": encoder}
    index["components"] = [name for name, network in parts.items() if network is not None]
    write_json(folder / INDEX, index)


def read_index(folder: Path, class_name: str) -> dict[str, Any]:
    """What `model_index.json` says; its components are all there.

    Raises:
        UserError: the folder holds no whole pipeline of this class.
    """
    path = folder / INDEX
    if not path.exists():
        raise UserError(folder, f"holds no pipeline (no {INDEX})", "`save_pretrained` writes one")
    index = read_json(path)
    if not isinstance(index, dict) or index.get("_class_name") != class_name:
        raise UserError(path, f"does not describe a {class_name}", "check the path")
    parts = index.get("components")
    if not isinstance(parts, list) or "dit" not in parts or any(part not in COMPONENTS for part in parts):
        problem = f"components are {parts!r} instead of dit and others of {', '.join(COMPONENTS)}"
        raise UserError(path, problem, "fetch or save it again")
    for part in parts:
        if not (folder / part).is_dir():
            raise UserError(folder, f"is not whole: {part} is missing", "fetch or save it again")
    entry = index.get("encoder")
    if "encoder" in parts and (not isinstance(entry, dict) or sorted(entry) != sorted(ENCODER_ENTRY)):
        problem = f"encoder is {entry!r} instead of {', '.join(ENCODER_ENTRY)}"
        raise UserError(path, problem, "fetch or save it again")
    return index


def _facts(sampler: Sampler) -> dict[str, Any]:
    """What the transformer's folder says beside its architecture, as far as it is known."""
    known = {} if sampler.trained_law is None else law_fact(sampler.trained_law)
    facts: dict[str, Any] = known | {"classes": list(sampler.conditions.names)}
    if sampler.space.is_scaled:
        facts["statistics"] = sampler.space.statistics
    if sampler.texture_vae is not None:
        facts["image_size"] = sampler.image_size
    return facts

"""The folder of a saved pipeline: what lies where, as diffusers lays pipelines out, and as this package did before.

`model_index.json` tells diffusers which class loads each component; what begins with an underscore is ours alone. The
texture VAE is diffusers' own AutoencoderKL where it is one; the other components are model folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sfd_cli.errors import UserError
from sfd_cli.files import read_json
from sfd_cli.laws import LAW_KEYS

INDEX = "model_index.json"
SCHEDULER = "scheduler"
SCHEDULER_CONFIG = "scheduler_config.json"
SOLVING = (*LAW_KEYS, "solver", "steps", "time_grid", "shift", "rtol", "atol")
"""Settings of the section `sample` that the scheduler has; the index has the others."""

FOLDERS = {"dit": "transformer", "texture_vae": "vae", "guide": "guide", "semantic": "semantic", "encoder": "encoder"}
"""The folder of each network, by what it is called here; in pipelines saved before that was its folder's name too."""
# What the index tells of the encoder, whose folder holds its weights only.
ENCODER_ENTRY = ("name", "image_size", "tiles")
# The networks that diffusers does not load, by what the index tells of them.
OURS = {"semantic": "_semantic", "encoder": "_encoder"}

CODE = "pipeline"
"""Stem of the file of code that diffusers asks for a pipeline that it does not know."""
ADAPTER_MODULE, ADAPTER = "sfd_cli.pipeline.diffusers_pipeline", "SemanticFirstDiffusionPipeline"
MODELS_MODULE = "sfd_cli.pipeline.diffusers_models"
TRANSFORMER_CLASS, COMPRESSOR_CLASS = "SemanticFirstTransformer2DModel", "SemanticFirstTextureCompressor"
SCHEDULER_CLASS = "SemanticFirstScheduler"

_AGAIN = "fetch or save it again"


class SavedPipeline(NamedTuple):
    """A saved pipeline whose components are all there.

    Attributes:
        folder: where it is.
        parts: the folder of each network that it has, by the keys of `FOLDERS`.
        sample: settings of the section `sample`, not checked yet.
        encoder: of the visual encoder, the values of `ENCODER_ENTRY`; empty without.
    """

    folder: Path
    parts: dict[str, Path]
    sample: Any
    encoder: Mapping[str, Any]


def read_saved(folder: Path, class_name: str) -> SavedPipeline:
    """What `model_index.json` says, in either layout.

    Raises:
        UserError: the folder holds no whole pipeline of this class.
    """
    path = folder / INDEX
    if not path.exists():
        raise UserError(folder, f"holds no pipeline (no {INDEX})", "`save_pretrained` writes one")
    index = read_json(path)
    kind = index.get("_class_name") if isinstance(index, dict) else None
    if kind == class_name:
        names, sample, encoder = _parts_of_old(path, index), index.get("sample", {}), index.get("encoder")
        parts = {name: folder / name for name in names}
    elif kind == [CODE, ADAPTER]:
        parts = {name: folder / FOLDERS[name] for name in _parts(path, index)}
        sample, encoder = _sample(folder, index), index.get(OURS["encoder"])
    else:
        raise UserError(path, f"does not describe a {class_name}", "check the path")
    for place in parts.values():
        if not place.is_dir():
            raise UserError(folder, f"is not whole: {place.name} is missing", _AGAIN)
    if "encoder" in parts and (not isinstance(encoder, dict) or sorted(encoder) != sorted(ENCODER_ENTRY)):
        problem = f"encoder is {encoder!r} instead of {', '.join(ENCODER_ENTRY)}"
        raise UserError(path, problem, _AGAIN)
    return SavedPipeline(folder, parts, sample, encoder if "encoder" in parts and encoder else {})


def _parts(path: Path, index: Mapping[str, Any]) -> list[str]:
    """The networks that an index names."""
    found = []
    for name, key in (FOLDERS | OURS).items():
        entry = index.get(key)
        if name not in OURS and entry is not None:
            if not isinstance(entry, list) or len(entry) != 2:
                raise UserError(path, f"{key} is {entry!r} instead of a library and a class", _AGAIN)
            entry = entry[0]
        if entry is not None:
            found.append(name)
    if "dit" not in found:
        raise UserError(path, f"names no {FOLDERS['dit']}", _AGAIN)
    return found


def _sample(folder: Path, index: Mapping[str, Any]) -> Any:
    """The scheduler's settings and the index's own; what is no settings comes back as it is, to be refused as such."""
    path = folder / SCHEDULER / SCHEDULER_CONFIG
    solving, own = read_json(path), index.get("sample", {})
    if not isinstance(solving, dict):
        raise UserError(path, f"holds {solving!r} instead of settings by their names", _AGAIN)
    if not isinstance(own, dict):
        return own
    return {key: value for key, value in solving.items() if not key.startswith("_")} | own


def _parts_of_old(path: Path, index: Mapping[str, Any]) -> list[str]:
    parts = index.get("components")
    if not isinstance(parts, list) or "dit" not in parts or any(part not in list(FOLDERS) for part in parts):
        problem = f"components are {parts!r} instead of dit and others of {', '.join(FOLDERS)}"
        raise UserError(path, problem, _AGAIN)
    return parts

"""Model folders: `config.json` says what to build, one `.safetensors` file per set of weights fills it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sfd_cli.errors import UserError
from sfd_cli.files import atomic_path, read_json, write_json
from sfd_cli.formats.format import FormatError, ModelParts, about
from sfd_cli.formats.state_dicts import require_fit
from sfd_cli.formats.torch_files import read_safetensors
from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig
from sfd_cli.networks.semantic_pca import SemanticPCA, SemanticPCAConfig
from sfd_cli.networks.semantic_vae import SemanticVAE, SemanticVAEConfig
from sfd_cli.networks.texture_vae import TextureVAE, TextureVAEConfig

CONFIG = "config.json"
TABLES = "_tables"
"""Ends the stem of a file with an imported transformer's own tables of positions: `ema_tables` belongs to `ema`."""

POSITIONS = ("position", "rotary_cos", "rotary_sin")

M = TypeVar("M", bound=nn.Module)
C = TypeVar("C")


def save_model(
    folder: Path, module_type: str, config: Any, weights: Mapping[str, Mapping[str, Tensor]], extra: Mapping[str, Any]
) -> None:
    """Write a model folder; equal arguments give equal bytes.

    The old `config.json` goes first and the new one comes last, so a folder that has one is whole, and weights of
    one model never lie beside the configuration of another.

    Args:
        folder: created if missing.
        module_type: class name of the module, e.g. "LightningDiT".
        config: its configuration dataclass.
        weights: state dicts by file stem, e.g. {"model": ..., "ema": ...}.
        extra: further JSON-able keys of `config.json`, given back by the loaders.
    """
    folder = Path(folder)
    clash = {"type", "config"} & set(extra)
    if clash:
        raise ValueError(f"extra must not hold {sorted(clash)}: config.json has them already")
    (folder / CONFIG).unlink(missing_ok=True)
    for tables in folder.glob(f"*{TABLES}.safetensors"):
        tables.unlink()
    for stem, state_dict in weights.items():
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
        with atomic_path(folder / f"{stem}.safetensors") as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
    write_json(folder / CONFIG, {"type": module_type, "config": asdict(config), **extra})


def dit_weights(network: LightningDiT, stem: str) -> dict[str, dict[str, Tensor]]:
    """A transformer's weights for `save_model`, with its tables of positions where they are not just ours."""
    with torch.device("cpu"):
        fresh = dict(LightningDiT(replace(network.config, depth=0, repa_depth=0)).named_buffers())
    tables = {
        name: table
        for name, table in network.named_buffers()
        if name in POSITIONS and not torch.equal(table.cpu(), fresh[name])
    }
    return {stem: network.state_dict()} | ({f"{stem}{TABLES}": tables} if tables else {})


def load_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a model folder: "type", "config" and the extra keys.

    Raises:
        UserError: there is none, or it is not a model's.
    """
    path = Path(folder) / CONFIG
    if not Path(folder).exists():
        raise UserError(
            folder,
            "does not exist, and is no name in `sfd weights list`",
            "check it, or run the stage that makes it",
        )
    if not path.exists():
        raise UserError(folder, f"holds no whole model (no {CONFIG})", "run the stage that makes it")
    description = read_json(path)
    if not isinstance(description, dict) or not isinstance(description.get("config"), dict):
        raise UserError(path, "does not describe a model (no 'config' in it)", "run the stage that makes it again")
    return description


MODULES: dict[str, tuple[type[nn.Module], type]] = {
    "LightningDiT": (LightningDiT, LightningDiTConfig),
    "SemanticVAE": (SemanticVAE, SemanticVAEConfig),
    "SemanticPCA": (SemanticPCA, SemanticPCAConfig),
    "TextureVAE": (TextureVAE, TextureVAEConfig),
}
"""Networks and their configurations by the `type` in `config.json`."""


def load_architecture(folder: Path) -> tuple[str, Any]:
    """The type of the network of a model folder and its configuration dataclass.

    Raises:
        UserError: there is no model, its description is damaged, or it is of a type that has no network.
    """
    description, source = load_config(folder), Path(folder) / CONFIG
    kind = description.get("type")
    if kind not in MODULES:
        raise UserError(source, f"describes a {kind}, which is no network", "check the path")
    with about(source):
        return kind, configured(MODULES[kind][1], description["config"])


def load_model(folder: Path, weights: str = "model") -> nn.Module:
    """The network of a model folder, on the CPU, in evaluation mode and frozen.

    Positions are the imported checkpoint's own where those were kept beside its weights.

    Args:
        folder: the model folder.
        weights: names the file, e.g. "ema" or "model".

    Raises:
        UserError: something is missing, damaged, or of a type that has no network.
    """
    folder = Path(folder)
    kind, config = load_architecture(folder)
    with about(folder / CONFIG):
        network = built(MODULES[kind][0], config)
    path = folder / f"{weights}.safetensors"
    if not path.exists():
        present = ", ".join(sorted(file.stem for file in folder.glob("*.safetensors"))) or "none"
        raise UserError(path, f"does not exist (weights present: {present})", "run the stage that makes it again")
    tensors = read_safetensors(path)
    with about(path):
        require_fit(network, tensors)
    network.load_state_dict(tensors)
    tables = folder / f"{weights}{TABLES}.safetensors"
    if tables.exists():
        with about(tables):
            fill_buffers(network, read_safetensors(tables))
    return network.eval().requires_grad_(False)


def configured(config_type: type[C], values: Mapping[str, Any]) -> C:
    """The configuration dataclass that a `config.json` describes.

    Raises:
        FormatError: something in `values` is missing, unknown or impossible.
    """
    known = {field.name: field for field in fields(config_type)}  # type: ignore[arg-type]
    needed = [key for key, field in known.items() if field.default is MISSING and field.default_factory is MISSING]
    problems = [f"{key} is missing" for key in needed if key not in values]
    problems += [f"{key} is unknown" for key in values if key not in known]
    if not problems:
        try:
            return config_type(**values)
        except ValueError as error:
            problems = [str(error)]
        except TypeError:
            problems = ["one of its values is of the wrong type"]
    raise FormatError(f"does not describe a {config_type.__name__.removesuffix('Config')}: {'; '.join(problems)}")


def built(module: type[M], config: Any) -> M:
    """The module of a configuration whose numbers nobody has looked at yet.

    Raises:
        FormatError: there is no such module.
    """
    try:
        return module(config)
    except (TypeError, ValueError):
        raise FormatError(f"does not describe a {module.__name__}: one of its values will not do") from None


def fill_buffers(module: nn.Module, tables: Mapping[str, Tensor]) -> None:
    """Put tables of positions into the module's buffers of the same names.

    Raises:
        FormatError: one has no place.
    """
    buffers = dict(module.named_buffers())
    for name, table in tables.items():
        if name not in buffers or buffers[name].shape != table.shape:
            raise FormatError(f"does not fit its weights: {name} {tuple(table.shape)}", "import them again")
        buffers[name].copy_(table)


def read_parts(folder: Path, config_type: type) -> ModelParts:
    """What a model folder holds, the weights in the dtype they were saved in, checked against the architecture.

    Args:
        folder: the model folder.
        config_type: configuration dataclass of its type.

    Raises:
        UserError: something is missing, damaged or does not fit.
    """
    folder = Path(folder)
    description = load_config(folder)
    kind = description.pop("type")
    with about(folder / CONFIG):
        config: Any = configured(config_type, description.pop("config"))
        with torch.device("meta"):
            network = built(MODULES[kind][0], config) if kind in MODULES else None
    weights = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights[path.stem] = read_safetensors(path)
        if network is not None and not path.stem.endswith(TABLES):
            with about(path):
                require_fit(network, weights[path.stem])
    return ModelParts(kind, config, weights, description)


def save_parts(parts: ModelParts, folder: Path) -> None:
    """Write a model of another format as a model folder, which must not be there yet."""
    weights = {stem: _separate(tensors) for stem, tensors in parts.weights.items()}
    save_model(folder, parts.kind, parts.config, weights, parts.facts)


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors none of which is a piece of another's memory, or of a larger one's, which safetensors refuses."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage()
        if memory.nbytes() != tensor.nbytes or memory.data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(memory.data_ptr())
        separate[name] = tensor
    return separate

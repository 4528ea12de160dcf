"""Model folders: `config.json` says what to build, one `.safetensors` file per set of weights fills it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from sfd_cli.config import first_problem
from sfd_cli.errors import UserError
from sfd_cli.files import atomic_path, read_json, write_json
from sfd_cli.formats.format import FormatError, ModelParts, about
from sfd_cli.formats.state_dicts import require_fit
from sfd_cli.formats.torch_files import read_safetensors
from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig
from sfd_cli.tables import COMPRESSORS, TEXTURE_COMPRESSORS, Table

CONFIG = "config.json"
TABLES = "_tables"
"""Ends the stem of a file with an imported transformer's own tables of positions: `ema_tables` belongs to `ema`."""

ONLY_WEIGHTS = "diffusion_pytorch_model"
"""Stem of the weights of a saved pipeline's component, which has one set; the name is diffusers'."""

POSITIONS = ("position", "rotary_cos", "rotary_sin")

C = TypeVar("C")


def type_of(path: Path) -> str | None:
    """The type of the model in a folder of ours; None for a file, and for a folder of diffusers.

    Raises:
        UserError: there is nothing, or a folder that is neither.
    """
    if path.is_file():
        return None
    description = _read_config(path)
    if isinstance(description, dict) and "_class_name" in description and "type" not in description:
        return None
    return str(_require_model(path, description).get("type"))


def load_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a model folder: "type", "config" and the extra keys.

    Raises:
        UserError: there is none, or it is not a model's.
    """
    return _require_model(folder, _read_config(folder))


def _read_config(folder: Path) -> Any:
    path = Path(folder) / CONFIG
    if not Path(folder).exists():
        raise UserError(folder, "does not exist, and is no name in `sfd weights list`", "run the stage that makes it")
    if not path.exists():
        raise UserError(folder, f"holds no whole model (no {CONFIG})", "run the stage that makes it")
    return read_json(path)


class _Statistics(BaseModel):
    """Mean and standard deviation of every channel of the latents that a transformer was trained on."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    mean: list[float]
    std: list[Annotated[float, Field(gt=0)]]


class _Description(BaseModel):
    """What `config.json` says of a model; keys that it need not have are of transformers."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    type: str
    config: dict[str, Any]
    statistics: Annotated[_Statistics | None, BeforeValidator(lambda found: found or None)] = None
    classes: list[str | int] | None = None
    image_size: Annotated[int, Field(gt=0)] | None = None
    delta_t: Annotated[float, Field(ge=0, le=1)] | None = None
    texture_vae: str | None = None


def _require_model(folder: Path, description: Any) -> dict[str, Any]:
    try:
        _Description.model_validate(description)
    except ValidationError as error:
        problem = f"does not describe a model ({first_problem(error)})"
        raise UserError(Path(folder) / CONFIG, problem, "fetch it again, or run the stage that makes it") from None
    return description


def compressors() -> dict[type[nn.Module], type]:
    """The semantic compressors' configuration dataclasses by the class of the network, as COMPRESSORS lists them."""
    return _listed(COMPRESSORS)


def texture_compressors() -> dict[type[nn.Module], type]:
    """The same of the texture compressors, as TEXTURE_COMPRESSORS lists them."""
    return _listed(TEXTURE_COMPRESSORS)


def _listed(table: Table) -> dict[type[nn.Module], type]:
    entries = [table[name] for name in table]
    return {entry.network: entry.config for entry in entries if entry is not None}


def _architecture(kind: str | None) -> tuple[type[nn.Module], type] | None:
    """Network and configuration dataclass of a `type` in `config.json`; None where it is no network of ours."""
    known: dict[type[nn.Module], type] = {LightningDiT: LightningDiTConfig}
    known |= texture_compressors() | compressors()
    return next((pair for pair in known.items() if pair[0].__name__ == kind), None)


def load_model_config(folder: Path) -> Any:
    """The configuration dataclass of the network of a model folder.

    Raises:
        UserError: there is no model, its description is damaged, or it is of a type that has no network.
    """
    description, source = load_config(folder), Path(folder) / CONFIG
    kind = description.get("type")
    architecture = _architecture(kind)
    if architecture is None:
        raise UserError(source, f"describes a {kind}, which is no network", "check the path")
    with about(source):
        return configured(architecture[1], description["config"])


def load_model(folder: Path, stem: str) -> nn.Module:
    """The network of a model folder with the weights in `<stem>.safetensors`, on the CPU, frozen, in evaluation mode.

    Positions are the imported checkpoint's own where those were kept beside its weights.

    Raises:
        UserError: something is missing, damaged, or of a type that has no network.
    """
    folder = Path(folder)
    config = load_model_config(folder)
    kind = load_config(folder)["type"]
    with about(folder / CONFIG), torch.device("meta"):
        shape = _built(kind, config)  # without memory, which is taken once the weights are known to fit
    path, tables = folder / f"{stem}.safetensors", folder / f"{stem}{TABLES}.safetensors"
    tensors = read_safetensors(path)
    with about(path):
        require_fit(shape, tensors)
    network = _built(kind, config)
    network.load_state_dict(tensors)
    if tables.exists():
        place_tables(network, read_safetensors(tables), tables)
    return network.eval().requires_grad_(False)


def place_tables(network: nn.Module, tables: Mapping[str, Tensor], path: Path) -> None:
    """Put tables of positions, which come from the file at `path`, into a network.

    Raises:
        UserError: one does not fit.
    """
    buffers = dict(network.named_buffers())
    for name, table in tables.items():
        if name not in buffers or buffers[name].shape != table.shape:
            raise UserError(path, f"does not fit its weights: {name} {tuple(table.shape)}", "import them again")
        buffers[name].copy_(table)


def read_parts(folder: Path, config_type: type) -> ModelParts:
    """What a model folder holds, the weights in the dtype they were saved in, checked against the architecture.

    Raises:
        UserError: something is missing, damaged or does not fit.
    """
    folder = Path(folder)
    description = load_config(folder)
    kind = description.pop("type")
    with about(folder / CONFIG):
        config: Any = configured(config_type, description.pop("config"))
        with torch.device("meta"):
            network = None if _architecture(kind) is None else _built(kind, config)
    # A component of a saved pipeline has one set of weights, under a name of its own.
    usual = "ema" if kind == "LightningDiT" else "model"
    files = sorted(folder.glob("*.safetensors"))
    weights = {path.stem.replace(ONLY_WEIGHTS, usual): read_safetensors(path) for path in files}
    for stem, tensors in weights.items():
        if network is not None and not stem.endswith(TABLES):
            with about(folder / f"{stem}.safetensors"):
                require_fit(network, tensors)
    return ModelParts(kind, config, weights, description)


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
            # As JSON, in which a list may be a tuple and a whole number a float, but no text a number.
            return TypeAdapter(config_type).validate_json(json.dumps(dict(values)), strict=True)
        except ValidationError as error:
            problems = [str(first_problem(error))]
    raise FormatError(f"does not describe a {config_type.__name__.removesuffix('Config')}: {'; '.join(problems)}")


def _built(kind: str, config: Any) -> nn.Module:
    """The network of an unvalidated configuration; FormatError where there is no such network."""
    architecture = _architecture(kind)
    assert architecture is not None
    try:
        return architecture[0](config)
    except (ArithmeticError, MemoryError, RuntimeError, TypeError, ValueError):
        raise FormatError(f"does not describe a {kind}: one of its values is impossible") from None


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
        save_weights(folder / f"{stem}.safetensors", state_dict)
    write_json(folder / CONFIG, {"type": module_type, "config": described(config), **extra})


def save_weights(path: Path, state_dict: Mapping[str, Tensor]) -> None:
    """Write a state dict as a file of safetensors, atomically."""
    with atomic_path(path) as temporary:
        save_file(_separate(state_dict), temporary, metadata={"format": "pt"})


def described(config: Any) -> dict[str, Any]:
    """A configuration dataclass as `config.json` has it.

    A field that its class did not always have (`later` in its metadata) is left out at its default: models from before
    and new ones have the same bytes, and programs from before can read them.
    """
    implied = {field.name: field.default for field in fields(config) if field.metadata.get("later")}
    return {key: value for key, value in asdict(config).items() if key not in implied or value != implied[key]}


def save_parts(parts: ModelParts, folder: Path) -> None:
    """`save_model` for a model of another format."""
    save_model(folder, parts.kind, parts.config, parts.weights, parts.facts)


def _separate(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU that share no memory with one another or a larger one, which safetensors refuses."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in state_dict.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage()
        if memory.nbytes() != tensor.nbytes or memory.data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(memory.data_ptr())
        separate[name] = tensor
    return separate


def dit_weights(network: LightningDiT, stem: str) -> dict[str, dict[str, Tensor]]:
    """A transformer's weights for `save_model`, with its tables of positions where they are not just ours."""
    with torch.device("cpu"), torch.random.fork_rng(devices=()):  # the weights it draws are of no account
        fresh = dict(LightningDiT(replace(network.config, depth=0, repa_depth=0)).named_buffers())
    tables = {
        name: table
        for name, table in network.named_buffers()
        if name in POSITIONS and not torch.equal(table.cpu(), fresh[name])
    }
    return {stem: network.state_dict()} | ({f"{stem}{TABLES}": tables} if tables else {})

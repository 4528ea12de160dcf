"""Adapter folders: what `peft` reads, and beside it a `config.json` by which an adapter and its base are a model.

`adapter_config.json` and `adapter_model.safetensors` are peft's own. `config.json` has what that of a model folder has,
and the digest of the weights that the adapter was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sfd_cli.errors import SettingError, UserError
from sfd_cli.files import read_as, write_json
from sfd_cli.formats.format import about
from sfd_cli.formats.model_folder import (
    CONFIG,
    TABLES,
    configured,
    described,
    dit_weights,
    load_config,
    save_weights,
)
from sfd_cli.formats.torch_files import read_safetensors
from sfd_cli.networks.adapters import adapter_state, as_written, require_peft
from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig

if TYPE_CHECKING:
    from peft import LoraConfig

KIND = "LightningDiTAdapter"
"""Type of an adapter in `config.json`."""
BASE = "base"
"""Key of `config.json`: SHA-256 of the file of weights that the adapter was trained on."""
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_TABLES = "tables.safetensors"
"""Tables of positions, where the network has an imported checkpoint's own."""
BASE_PATH = "base_model_name_or_path"
"""Key of `adapter_config.json`: where the base is."""


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter on disk; its weights are not read yet.

    Attributes:
        folder: where it is.
        values: of `adapter_config.json`.
        description: of `config.json`.
        network: the architecture of the network that is adapted, its label table included.
    """

    folder: Path
    values: dict[str, Any]
    description: dict[str, Any]
    network: LightningDiTConfig

    @classmethod
    def open(cls, folder: Path) -> AdapterFolder:
        """The adapter in a folder.

        Raises:
            UserError: it is incomplete or damaged.
        """
        values, description = read_as(dict[str, Any], folder / ADAPTER_CONFIG), load_config(folder)
        if description["type"] != KIND or not isinstance(description.get(BASE), str):
            problem = "does not tell which weights its adapter is for"
            raise UserError(folder / CONFIG, problem, "give an adapter that `sfd train` has made")
        with about(folder / CONFIG):
            network = configured(LightningDiTConfig, description["config"])
        if not isinstance(values.get(BASE_PATH), str):
            raise UserError(folder / ADAPTER_CONFIG, f"names no {BASE_PATH}", "write there where the base is")
        return cls(folder, values, description, network)

    @property
    def base(self) -> str:
        """Where its base is, as it was given for training."""
        return str(self.values[BASE_PATH])

    def lora(self) -> LoraConfig:
        """How `peft` describes it.

        Raises:
            UserError: `peft` is not installed, or it is of a kind that is none of LoRA's.
        """
        try:
            require_peft()
        except SettingError as error:
            raise UserError(self.folder, error.problem, error.remedy) from None
        from peft import LoraConfig, PeftConfig

        try:
            config = PeftConfig.from_peft_type(**self.values)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            said = " ".join(str(error).split())[:200]
            raise UserError(self.folder / ADAPTER_CONFIG, f"is no description of an adapter ({said})") from None
        if not isinstance(config, LoraConfig):
            problem = f"describes an adapter of the kind {config.peft_type}, but LORA is wanted"
            raise UserError(self.folder / ADAPTER_CONFIG, problem, "give an adapter that `sfd train` has made")
        return config

    def tensors(self) -> dict[str, Tensor]:
        """The adapter's weights, by peft's names.

        Raises:
            UserError: they are missing or damaged.
        """
        return read_safetensors(self.folder / ADAPTER_WEIGHTS)

    def tables(self) -> dict[str, Tensor]:
        """Tables of positions that are not just those computed here, by the names of the network's buffers.

        Raises:
            UserError: they are damaged.
        """
        path = self.folder / ADAPTER_TABLES
        return read_safetensors(path) if path.exists() else {}


def is_adapter(source: str | Path) -> bool:
    """Whether a source of a model is the folder of an adapter."""
    return (Path(source) / ADAPTER_CONFIG).is_file()


def save_adapter(folder: Path, network: LightningDiT, lora: LoraConfig, base: str, facts: Mapping[str, Any]) -> None:
    """Write the adapter of an adapted network; equal arguments give equal bytes.

    The old `config.json` goes first and the new one comes last, so a folder that has one is whole.

    Args:
        folder: created if missing.
        network: adapted.
        lora: how.
        base: digest of the weights that it was adapted from.
        facts: further keys of `config.json`, as those of a model folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in (CONFIG, ADAPTER_TABLES):
        (folder / old).unlink(missing_ok=True)
    save_weights(folder / ADAPTER_WEIGHTS, adapter_state(network, lora))
    if tables := dit_weights(network, "").get(TABLES):
        save_weights(folder / ADAPTER_TABLES, tables)
    write_json(folder / ADAPTER_CONFIG, as_written(lora))
    write_json(folder / CONFIG, {"type": KIND, "config": described(network.config), BASE: base, **facts})

"""A transformer that is kept as its adapter and a base, and merged in memory when it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from sfd_cli.errors import UserError
from sfd_cli.files import fingerprint
from sfd_cli.formats.adapter_folder import (
    ADAPTER_CONFIG,
    ADAPTER_TABLES,
    ADAPTER_WEIGHTS,
    BASE,
    BASE_PATH,
    AdapterFolder,
)
from sfd_cli.formats.model_folder import place_tables
from sfd_cli.networks.adapters import adapt, load_adapter, merged_state
from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig
from sfd_cli.weights.fetch import digest
from sfd_cli.weights.model import M, Model


@dataclass(frozen=True)
class AdaptedModel(Model[M]):
    """A transformer whose weights lie in two places: the few of `adapter`, and those of `base`, which it changes."""

    adapter: AdapterFolder
    base: Model[LightningDiT]

    @cached_property
    def config(self) -> LightningDiTConfig:
        """The architecture of the merged network."""
        return self.adapter.network

    @cached_property
    def facts(self) -> dict[str, Any]:
        """As of a model folder."""
        return {key: value for key, value in self.adapter.description.items() if key not in ("type", "config", BASE)}

    @cached_property
    def fingerprint(self) -> str:
        """Of the adapter's own bytes, wherever its base lies, whose digest is among them."""
        values = {key: value for key, value in self.adapter.values.items() if key != BASE_PATH}
        return fingerprint({"description": self.adapter.description, "adapter": values, "weights": self.digest})

    @property
    def digest(self) -> str:
        """SHA-256 of the file with the adapter's weights."""
        path = self.folder / ADAPTER_WEIGHTS
        if not path.exists():
            raise UserError(self.source, f"holds no {ADAPTER_WEIGHTS}", "fetch it again, or train it again")
        return digest(path)

    def load(self) -> M:
        """The plain network that both give together, on the CPU, frozen, in evaluation mode.

        Raises:
            UserError: something is damaged or does not fit, or `peft` is not installed.
        """
        lora, tensors = self.adapter.lora(), self.adapter.tensors()
        network, inherited = LightningDiT(self.config), self.base.load().state_dict()
        whole = tuple(f"{name}." for name in lora.modules_to_save or ())
        state = network.state_dict()
        state |= {name: inherited[name] for name in state if name in inherited and not name.startswith(whole)}
        try:
            network.load_state_dict(state)
            adapt(network, lora)
            load_adapter(network, lora, tensors)
        except (AttributeError, RuntimeError, ValueError) as error:
            said = " ".join(str(error).split())[:200]
            problem = f"does not fit {self.base.source} ({said})"
            raise UserError(self.folder, problem, "give the folder of the adapter as it was made") from None
        merged = LightningDiT(self.config)
        merged.load_state_dict(merged_state(network), assign=True)
        place_tables(merged, self.adapter.tables(), self.folder / ADAPTER_TABLES)
        return cast(M, merged.eval().requires_grad_(False))


def adapted(
    source: str, adapter: AdapterFolder, open_base: Callable[[AdapterFolder], Model[LightningDiT]]
) -> AdaptedModel[LightningDiT]:
    """The model that an adapter and its base are.

    Args:
        source: what it was opened as, for messages.
        adapter: the adapter.
        open_base: opens the base that it names.

    Raises:
        UserError: the base is not there, or has other weights than those that the adapter was trained on.
    """
    place = adapter.folder / ADAPTER_CONFIG
    try:
        base = open_base(adapter)
        found = base.digest
    except UserError as error:
        problem = f"its base {adapter.base} cannot be opened: {error.subject} {error.problem}"
        raise UserError(source, problem, f"put it there, or write where it is into {place} as {BASE_PATH}") from None
    wanted = adapter.description[BASE]
    if found != wanted:
        problem = (
            f"was trained on other weights than those of {adapter.base} (SHA-256 {wanted[:12]}..., not {found[:12]}...)"
        )
        raise UserError(source, problem, f"write where its own base is into {place} as {BASE_PATH}")
    return AdaptedModel(source, adapter.folder, "adapter", adapter, base)

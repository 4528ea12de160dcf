"""Training an adapter: what is trained, what is written of it, and what a step of it takes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfd_cli.config import Adapter
from sfd_cli.errors import SettingError
from sfd_cli.formats.adapter_folder import save_adapter
from sfd_cli.formats.model_folder import dit_weights, save_model
from sfd_cli.networks.adapters import LABELS, adapt, adapter_state, lora, merged_state
from sfd_cli.networks.lightning_dit import LightningDiT
from sfd_cli.weights.model import Model

if TYPE_CHECKING:
    from peft import LoraConfig

FOLDER = "adapter"
"""In the folder of a model that was trained as an adapter: the adapter alone."""
SHARE_OF_FLOPS = 2 / 3
"""Of a weight that is not trained the backward pass takes no gradient, half of its work."""


@dataclass(frozen=True)
class Adaptation:
    """What `dit.adapter` makes of a training.

    Attributes:
        lora: how `peft` describes the adapter.
        base: digest of the weights that are adapted.
    """

    lora: LoraConfig
    base: str

    @classmethod
    def of(
        cls, section: Adapter, network: LightningDiT, initial: Model[LightningDiT], inherited: Collection[str]
    ) -> Adaptation:
        """Adapt a network in place.

        Args:
            section: the settings.
            network: with its first weights.
            initial: the transformer that they come from.
            inherited: names of the weights that come from there as they are; all other modules are trained whole, and
                so is the label table.

        Raises:
            SettingError: `peft` is not installed.
        """
        whole = {LABELS} | {name.partition(".")[0] for name in network.state_dict() if name not in inherited}
        try:
            config = lora(network, section.rank, section.numerator, whole, initial.source)
        except SettingError as error:
            raise SettingError("adapter", error.problem, error.remedy) from None
        adapt(network, config)
        return cls(config, initial.digest)

    def save(self, folder: Path, network: LightningDiT, facts: Mapping[str, Any]) -> None:
        """Write the adapter alone; `facts` are those of the model's `config.json`."""
        save_adapter(folder, network, self.lora, self.base, facts)

    def finish(self, folder: Path, average: LightningDiT, facts: Mapping[str, Any]) -> dict[str, int]:
        """Write the model: the merged average, which needs neither its base nor `peft`, and the adapter alone.

        Returns:
            What there is to note: numbers of the merged network, and of what was trained.
        """
        merged = merged_state(average)
        self.save(folder / FOLDER, average, facts)
        weights = dit_weights(average, "ema") | {"ema": merged}
        save_model(folder, type(average).__name__, average.config, weights, facts)
        counted = {"parameters": merged, "trained": adapter_state(average, self.lora)}
        return {name: sum(tensor.numel() for tensor in tensors.values()) for name, tensors in counted.items()}

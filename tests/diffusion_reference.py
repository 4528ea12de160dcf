"""The reference fixtures of the diffusion transformers, for the tests of the objective, the solvers and guidance."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from sfd_cli.diffusion.schedule import AsynchronousSchedule
from sfd_cli.networks.lightning_dit import LightningDiT
from sfd_cli.weights.convert import dit_from_reference

FOLDER = Path(__file__).parent / "reference"
DELTA_T = {"sfd": 0.3, "sync": 0.0, "plain": 0.0}


@dataclass(frozen=True)
class Reference:
    """One fixture file: networks in evaluation mode, and the reference's inputs and outputs."""

    model: LightningDiT
    guide: LightningDiT | None
    loss: dict[str, Tensor]
    sample: dict[str, Tensor]
    schedule: AsynchronousSchedule

    @property
    def semantic_channels(self) -> int:
        return self.model.config.semantic_channels


@cache
def load(name: str) -> Reference:
    with safe_open(FOLDER / f"dit_{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        described = {key: json.loads(value) for key, value in file.metadata().items()}

    def part(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(f"{prefix}."): value for key, value in tensors.items() if key.startswith(f"{prefix}.")}

    def network(prefix: str) -> LightningDiT:
        config, weights = dit_from_reference(
            part(prefix), described[prefix]["num_heads"], described[prefix].get("semantic_chans", 0)
        )
        module = LightningDiT(config)
        module.load_state_dict(weights)
        return module.eval().requires_grad_(False)

    return Reference(
        network("model"),
        network("guide") if "guide" in described else None,
        part("loss"),
        part("sample"),
        AsynchronousSchedule(DELTA_T[name]),
    )

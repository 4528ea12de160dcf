"""Latent statistics of the public reference code: mean and standard deviation of every channel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfd_cli.errors import UserError


@dataclass(frozen=True)
class LatentStatistics:
    """Mean and standard deviation of every channel of a latent, (C,) each."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        # JSON has no tuples; statistics read back must equal those that were written.
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))
        if len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} means, but {len(self.std)} standard deviations")


def statistics_from_reference(checkpoint: Mapping[str, Any]) -> LatentStatistics:
    """The reference's `latents_stats.pt`: `mean` and `std`, each float32 (1, C, 1, 1).

    Raises:
        UserError: something is missing, unknown, of another shape or dtype, or cannot normalise anything.
    """
    problems = [f"{key} is missing" for key in ("mean", "std") if key not in checkpoint]
    problems += [f"{key} is unknown" for key in checkpoint if key not in ("mean", "std")]
    if problems:
        raise UserError(f"the file does not hold latent statistics: {'; '.join(map(str, problems[:3]))}")
    parts = {key: _channels(key, checkpoint[key]) for key in ("mean", "std")}
    if min(parts["std"]) <= 0:
        raise UserError("the std of the latent statistics is not above zero in every channel; make them again")
    try:
        return LatentStatistics(**parts)
    except ValueError as error:
        raise UserError(f"the latent statistics do not fit together: {error}") from None


def statistics_to_reference(statistics: LatentStatistics) -> dict[str, Tensor]:
    """`mean` and `std` as the reference keeps them, float32 (1, C, 1, 1)."""
    return {
        "mean": torch.tensor(statistics.mean).view(1, -1, 1, 1),
        "std": torch.tensor(statistics.std).view(1, -1, 1, 1),
    }


def _channels(key: str, values: Any) -> tuple[float, ...]:
    """Float64 holds float32 exactly, so that nothing is lost on the way through Python's numbers and JSON."""
    if not isinstance(values, Tensor) or values.dtype != torch.float32:
        found = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise UserError(f"{key} of the latent statistics is {found} instead of a float32 tensor")
    if values.ndim != 4 or values.numel() == 0 or values.numel() != values.shape[1]:
        raise UserError(f"{key} of the latent statistics has shape {tuple(values.shape)} instead of (1, C, 1, 1)")
    if not values.isfinite().all():
        raise UserError(f"{key} of the latent statistics is not finite in every channel; make them again")
    return tuple(values.flatten().tolist())

"""Latent statistics of the public reference code: mean and standard deviation of every channel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfd_cli.formats.format import Content, Format, FormatError, Hints, ModelParts


@dataclass(frozen=True)
class LatentStatistics:
    """Mean and standard deviation of every channel of a latent, (C,) each."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for key in ("mean", "std"):
            values = getattr(self, key)
            if not isinstance(values, list | tuple) or not all(_is_finite(value) for value in values):
                raise ValueError(f"{key} is not a list of finite numbers")
            # JSON has no tuples; statistics read back must equal those that were written.
            object.__setattr__(self, key, tuple(values))
        if len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} means, but {len(self.std)} standard deviations")
        if any(value <= 0 for value in self.std):
            raise ValueError("std is not above zero in every channel")


def statistics_from_reference(checkpoint: Mapping[str, Any]) -> LatentStatistics:
    """The reference's `latents_stats.pt`: `mean` and `std`, each float32 (1, C, 1, 1).

    Raises:
        FormatError: something is missing, unknown, of another shape or dtype, or cannot normalise anything.
    """
    problems = [f"{key} is missing" for key in ("mean", "std") if key not in checkpoint]
    problems += [f"{key} is unknown" for key in checkpoint if key not in ("mean", "std")]
    if problems:
        raise FormatError(f"does not hold latent statistics: {'; '.join(problems[:3])}")
    parts = {key: _channels(key, checkpoint[key]) for key in ("mean", "std")}
    try:
        return LatentStatistics(**parts)
    except ValueError as error:
        raise FormatError(f"cannot normalise anything: {error}", "make them again") from None


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
        raise FormatError(f"{key} is {found} instead of a float32 tensor")
    if values.ndim != 4 or values.numel() == 0 or values.numel() != values.shape[1]:
        raise FormatError(f"{key} has shape {tuple(values.shape)} instead of (1, C, 1, 1)")
    return tuple(values.flatten().tolist())


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _read(content: Content, _: Hints) -> ModelParts:
    return ModelParts("LatentStatistics", statistics_from_reference(content.checkpoint), {})


FORMAT = Format(
    "LatentStatistics",
    LatentStatistics,
    matches=lambda content: "mean" in content.checkpoint and "std" in content.checkpoint,
    read=_read,
    write=lambda model: {"": statistics_to_reference(model.config)},
)

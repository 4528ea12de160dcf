"""Laws of both streams' times beside the paper's: leads in logit time, and paths of straight lines.

The logit of a time, l = ln(t / (1 - t)), is its log amplitude signal-to-noise ratio; the *lead* is that of the
semantics minus that of the textures. To make a stream k times as large is to give it a lead of ln k.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor

from sfd_cli.diffusion.latents import Streams
from sfd_cli.diffusion.schedule import Phase, Time, linear_phase, with_lead


@dataclass(frozen=True)
class LeadSchedule:
    """Semantics lead textures by `lead + slope * (2 T - 1)` in logit time, half before and half after l = logit T.

    T runs from 0 to 1, and 2 T - 1 = tanh(l / 2). With `slope` 0 the lead is the same throughout; synchronous at 0,
    textures first below 0. There are no corners, and no stream ever stands still.

    Args:
        lead: at T = 1/2, in logit time.
        slope: by how much more at the end; above -4 and below 4, where neither stream goes back.
    """

    lead: float
    slope: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lead) and abs(self.slope) < 4):
            raise ValueError(f"lead ({self.lead}) must be finite, and slope ({self.slope}) between -4 and 4")

    @classmethod
    def from_settings(cls, section: Any) -> Self:
        """See `Schedule`; reads `lead`, the law `lead`."""
        return cls(section.lead or 0.0)

    @property
    def end(self) -> float:
        """See `Schedule`."""
        return 1.0

    @property
    def phases(self) -> tuple[Phase, ...]:
        """One: everything is smooth. Past both ends the times go on along their tangents."""
        return (Phase(0.0, 1.0, self._straight_outside, self._rates, Streams(True, True)),)

    def times(self, progress: Tensor) -> Streams[Tensor]:
        """See `Schedule`."""
        progress = progress.clamp(0, 1)
        return with_lead(Streams(progress, progress), self._lead_at(progress))

    def _lead_at(self, progress: Time) -> Time:
        return self.lead + self.slope * (2 * progress - 1)

    def _straight_outside(self, progress: float) -> Streams[float]:
        inside = min(max(progress, 0.0), 1.0)
        texture, semantic = (time.item() for time in self.times(torch.tensor(inside, dtype=torch.float64)))
        rates, past = self._rates(inside), progress - inside
        return Streams(texture + past * rates.texture, semantic + past * rates.semantic)

    def _rates(self, progress: float) -> Streams[float]:
        """dt/dT = k / (1 + (k - 1) T)^2 * (1 +- slope T (1 - T)), k being e to half the lead."""
        progress = min(max(progress, 0.0), 1.0)
        ahead = math.exp(self._lead_at(progress) / 2)
        bend = self.slope * progress * (1 - progress)
        behind = 1 / ahead
        return Streams(
            behind / (1 + (behind - 1) * progress) ** 2 * (1 - bend),
            ahead / (1 + (ahead - 1) * progress) ** 2 * (1 + bend),
        )


@dataclass(frozen=True)
class CurveSchedule(LeadSchedule):
    """`LeadSchedule` with a lead that grows or falls along the way, the law `curve`."""

    @classmethod
    def from_settings(cls, section: Any) -> Self:
        """See `Schedule`; reads `lead` and `lead_slope`."""
        return cls(section.lead or 0.0, section.lead_slope or 0.0)


@dataclass(frozen=True)
class KnotSchedule:
    """Straight lines through points (t_s, t_z), from (0, 0) to (1, 1): the law `knots`.

    On each line the faster stream moves at rate 1, as it does under `offset`, which is the law of the knots
    (delta_t, 0) and (1, 1 - delta_t).

    Args:
        knots: the points between both ends, in order; no coordinate falls, and no point repeats the one before it.
    """

    knots: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        for (semantic, texture), (next_semantic, next_texture) in pairwise(self._points):
            if not (next_semantic >= semantic and next_texture >= texture):
                raise ValueError(f"goes back from ({semantic:g}, {texture:g}) to ({next_semantic:g}, {next_texture:g})")
            if (next_semantic, next_texture) == (semantic, texture):
                raise ValueError(f"({semantic:g}, {texture:g}) stands there twice")

    @classmethod
    def from_settings(cls, section: Any) -> Self:
        """See `Schedule`; reads `knots`, the coordinates in a row."""
        values = section.knots or []
        return cls(tuple(zip(values[::2], values[1::2], strict=True)))

    @property
    def end(self) -> float:
        """See `Schedule`."""
        return self._starts[-1]

    @property
    def phases(self) -> tuple[Phase, ...]:
        """A phase for each line."""
        corners = zip(pairwise(self._starts), pairwise(self._points), strict=True)
        return tuple(_line(*ends, *points) for ends, points in corners)

    def times(self, progress: Tensor) -> Streams[Tensor]:
        """See `Schedule`."""
        semantic, texture = (_piecewise(progress, self._starts, axis) for axis in zip(*self._points, strict=True))
        return Streams(texture, semantic)

    @property
    def _points(self) -> list[tuple[float, float]]:
        return [(0.0, 0.0), *self.knots, (1.0, 1.0)]

    @property
    def _starts(self) -> list[float]:
        """Progress at every point: the longer way of both streams, summed."""
        starts = [0.0]
        for (semantic, texture), (next_semantic, next_texture) in pairwise(self._points):
            starts.append(starts[-1] + max(next_semantic - semantic, next_texture - texture))
        return starts


def _line(start: float, end: float, first: tuple[float, float], last: tuple[float, float]) -> Phase:
    semantic, texture = ((b - a) / (end - start) for a, b in zip(first, last, strict=True))
    intercept = Streams(first[1] - texture * start, first[0] - semantic * start)
    return linear_phase(start, end, Streams(texture, semantic), intercept)


def _piecewise(x: Tensor, places: list[float], values: tuple[float, ...]) -> Tensor:
    """The line through (place, value) at `x`, level outside."""
    at, value = (torch.tensor(one, dtype=x.dtype, device=x.device) for one in (places, values))
    x = x.clamp(at[0], at[-1])
    left = (torch.searchsorted(at, x.detach(), right=True) - 1).clamp(0, len(places) - 2)
    slope = (value[left + 1] - value[left]) / (at[left + 1] - at[left])
    return value[left] + slope * (x - at[left])

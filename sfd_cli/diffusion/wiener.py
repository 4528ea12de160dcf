"""The sampling SDE: what a stochastic solver adds to the ODE so that every time keeps its distribution.

With a stream's time t, its velocity v and its score s = (t v - x) / (1 - t), the process

    dx = (v + w(t) s) dt + sqrt(2 w(t)) dW,    w(t) = 1 - t,

has at every time the distribution of the ODE dx = v dt (SiT, arXiv 2401.08740, whose code calls this w `sigma`;
REPA samples by the same one). Each stream has its own t, so a stream that stands still has neither drift nor noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sfd_cli.diffusion.latents import LatentSpace, Streams
from sfd_cli.diffusion.schedule import HALVINGS, Phase

Drift = Callable[[float, Tensor], Tensor]
"""(T, x) -> dx/dT."""
Normals = Callable[[], Tensor]
"""Standard normal noise (B, C, h, w), new at every call."""

# A time this near to 1 is 1 up to rounding.
AT_DATA = 1 - 1e-9


@dataclass(frozen=True)
class Wiener:
    """Noise of a stochastic solver in one phase, and the drift along the score that undoes what it does.

    Attributes:
        phase: both streams' times.
        space: which channels are whose.
        normals: where the noise comes from; a solver asks once for every step.
    """

    phase: Phase
    space: LatentSpace
    normals: Normals

    def drift(self, slope: Drift) -> Drift:
        """`slope`, dx/dT of the ODE, with the score's part: with w = 1 - t it is (1 + t) v - x, finite at both ends."""

        def drift(progress: float, x: Tensor) -> Tensor:
            times, rates = self.phase.times(progress), self.phase.rates(progress)
            velocity = self._spread(Streams(1 + times.texture, 1 + times.semantic), x) * slope(progress, x)
            return velocity - self._spread(rates, x) * x

        return drift

    def noise(self, start: float, end: float, x: Tensor) -> Tensor:
        """What a step from `start` to `end` adds to x (B, C, h, w); nothing in a stream that it brings to data."""
        times, rates, after = self.phase.times(start), self.phase.rates(start), self.phase.times(end)
        spreads = [
            0.0 if then >= AT_DATA else math.sqrt(2 * (1 - time) * rate * (end - start))
            for time, rate, then in zip(times, rates, after, strict=True)
        ]
        return self._spread(Streams(*spreads), x) * self.normals().to(x)

    def _spread(self, values: Streams[float], x: Tensor) -> Tensor:
        """A number for each stream, (1, C, 1, 1), as x has them."""
        return self.space.spread(Streams(*(torch.tensor([value], dtype=x.dtype) for value in values))).to(x.device)


def leave_last_step(points: list[float], phase: Phase, last_step: float) -> list[float]:
    """Points of a phase of which the last step has `last_step` of the time of the streams that end with it to go.

    As many points, squeezed. Of two streams that end together but not alike it is the later one's time. Unchanged where
    no stream comes to data, where there is one step only, and where less than `last_step` is left from the start.
    """
    begins = [_progress_at(phase, stream, 1 - last_step) for stream in (0, 1) if _comes_to_data(phase, stream)]
    if not begins or len(points) < 3 or max(begins) <= phase.start:
        return points
    ratio = (max(begins) - phase.start) / (points[-2] - phase.start)
    return [phase.start + (point - phase.start) * ratio for point in points[:-1]] + points[-1:]


def _comes_to_data(phase: Phase, stream: int) -> bool:
    return phase.moves[stream] and phase.times(phase.end)[stream] >= AT_DATA


def _progress_at(phase: Phase, stream: int, time: float) -> float:
    """Where a stream that moves is at `time`; the phase's start where it is past it there. By bisection."""
    low, high = phase.start, phase.end
    for _ in range(2 * HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if phase.times(middle)[stream] < time else (low, middle)
    return low

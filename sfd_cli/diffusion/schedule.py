"""The asynchronous schedule: how far each stream is at every progress T (arXiv 2512.04926, section 3).

Data is at time 1 and noise at time 0. Training, the solver and the plots all ask this one object; another offset
law is another object with the same members.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar, overload

from torch import Tensor

T = TypeVar("T")


class Streams(NamedTuple, Generic[T]):
    """One value for each stream of a composite latent."""

    texture: T
    semantic: T


class Phase(NamedTuple):
    """A stretch of progress on which each stream's time is linear: t = rate * T + intercept."""

    start: float
    end: float
    texture_rate: float
    semantic_rate: float
    texture_intercept: float
    semantic_intercept: float

    @property
    def rates(self) -> Streams[float]:
        """dt/dT of both streams."""
        return Streams(self.texture_rate, self.semantic_rate)

    def times(self, progress: float) -> Streams[float]:
        """Both streams' times at `progress`, by this phase's law, which goes on smoothly past both its ends.

        An adaptive solver looks past the end of what it integrates, and must not meet the next phase there.
        """
        return Streams(
            self.texture_rate * progress + self.texture_intercept,
            self.semantic_rate * progress + self.semantic_intercept,
        )


@dataclass(frozen=True)
class AsynchronousSchedule:
    """Semantics lead textures by `delta_t`: t_s = min(T, 1), t_z = max(T - delta_t, 0), T from 0 to 1 + delta_t.

    `delta_t` 0 is ordinary synchronous diffusion, 1 is fully sequential.
    """

    delta_t: float

    def __post_init__(self) -> None:
        if not 0 <= self.delta_t <= 1:
            raise ValueError(f"delta_t must be between 0 and 1, not {self.delta_t}")

    @property
    def end(self) -> float:
        """Progress at which both streams have become data."""
        return 1 + self.delta_t

    @property
    def breakpoints(self) -> tuple[float, ...]:
        """Progress values inside (0, end) at which a rate jumps, ascending."""
        return tuple(phase.start for phase in self.phases[1:])

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Semantics only, both, textures only: those of the three that are not empty, in order."""
        three = (
            Phase(0.0, self.delta_t, 0.0, 1.0, 0.0, 0.0),
            Phase(self.delta_t, 1.0, 1.0, 1.0, -self.delta_t, 0.0),
            Phase(1.0, self.end, 1.0, 0.0, -self.delta_t, 1.0),
        )
        return tuple(phase for phase in three if phase.end > phase.start)

    def phase_at(self, progress: float) -> Phase:
        """The phase that holds `progress`, the later one at a breakpoint, the last one from its start on."""
        return [phase for phase in self.phases if phase.start <= max(progress, 0.0)][-1]

    @overload
    def times(self, progress: float) -> Streams[float]: ...
    @overload
    def times(self, progress: Tensor) -> Streams[Tensor]: ...
    def times(self, progress: float | Tensor) -> Streams[float] | Streams[Tensor]:
        """Both streams' times in [0, 1] at `progress`, a number or a tensor of any shape."""
        if isinstance(progress, Tensor):
            return Streams((progress - self.delta_t).clamp(0, 1), progress.clamp(0, 1))
        return Streams(min(max(progress - self.delta_t, 0.0), 1.0), min(max(progress, 0.0), 1.0))

    @overload
    def rates(self, progress: float) -> Streams[float]: ...
    @overload
    def rates(self, progress: Tensor) -> Streams[Tensor]: ...
    def rates(self, progress: float | Tensor) -> Streams[float] | Streams[Tensor]:
        """dt/dT of both streams, 0 or 1: textures move from T = delta_t on, semantics up to T = 1.

        At a breakpoint, where the phases on either side disagree, a stream that moves on one side moves. Past the
        end, where an adaptive solver may look, the rates are those of the end.
        """
        if isinstance(progress, Tensor):
            progress = progress.clamp(max=self.end)
            return Streams((progress >= self.delta_t).to(progress.dtype), (progress <= 1).to(progress.dtype))
        progress = min(progress, self.end)
        return Streams(float(progress >= self.delta_t), float(progress <= 1))

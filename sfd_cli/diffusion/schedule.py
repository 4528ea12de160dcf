"""Schedules: how far each stream is at every progress T of training and sampling (arXiv 2512.04926, section 3).

Data is at time 1 and noise at time 0. A law is a class with the members of `Schedule`, entered in `sfd_cli.tables`
under the name that `dit.schedule` and `sample.schedule` give; training, solvers and figures use no other members.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self

from torch import Tensor

from sfd_cli.diffusion.latents import Streams
from sfd_cli.tables import SCHEDULES


class Phase(Protocol):
    """A stretch of progress on which both streams' times are smooth, so that a solver keeps its order inside it."""

    @property
    def start(self) -> float:
        """Progress at which it begins."""

    @property
    def end(self) -> float:
        """Progress at which it ends, larger than `start`."""

    @property
    def moves(self) -> Streams[bool]:
        """Whether each stream's time changes in this phase; a stream that does not move is frozen."""

    def times(self, progress: float) -> Streams[float]:
        """Both streams' times at `progress`, continued smoothly past both ends.

        An adaptive solver evaluates past the end of the phase, where the next one must not show.
        """

    def rates(self, progress: float) -> Streams[float]:
        """dt/dT of both streams at `progress`, continued likewise; 0 for a frozen stream."""


class Schedule(Protocol):
    """A law: both streams' times as functions of progress T, which runs from 0 (all noise) to `end` (all data)."""

    @classmethod
    def from_settings(cls, section: Any) -> Self:
        """The law that the section `dit`, `guide` or `sample` of the settings describes."""

    @property
    def end(self) -> float:
        """Progress at which both streams are data."""

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Phases that cover 0 to `end` without gaps, in order; one at least."""

    def times(self, progress: Tensor) -> Streams[Tensor]:
        """Both streams' times in [0, 1], of the shape and dtype of `progress` in [0, end]."""


def schedule_of(section: Any) -> Schedule:
    """The law that a section of the settings names by its key `schedule`."""
    law: Schedule = SCHEDULES[section.schedule].from_settings(section)
    return law


class LinearPhase(NamedTuple):
    """A phase on which each stream's time is linear, t = rate * T + intercept."""

    start: float
    end: float
    rate: Streams[float]
    intercept: Streams[float]

    @property
    def moves(self) -> Streams[bool]:
        """See `Phase`."""
        return Streams(self.rate.texture != 0, self.rate.semantic != 0)

    def times(self, progress: float) -> Streams[float]:
        """See `Phase`."""
        return Streams(
            self.rate.texture * progress + self.intercept.texture,
            self.rate.semantic * progress + self.intercept.semantic,
        )

    def rates(self, progress: float) -> Streams[float]:
        """See `Phase`."""
        return self.rate


@dataclass(frozen=True)
class AsynchronousSchedule:
    """Semantics lead textures by `delta_t`: t_s = min(T, 1), t_z = max(T - delta_t, 0), T from 0 to 1 + delta_t.

    `delta_t` 0 is ordinary synchronous diffusion, 1 is fully sequential (arXiv 2512.04926, section 3).
    """

    delta_t: float

    def __post_init__(self) -> None:
        if not 0 <= self.delta_t <= 1:
            raise ValueError(f"delta_t must be between 0 and 1, not {self.delta_t}")

    @classmethod
    def from_settings(cls, section: Any) -> Self:
        """See `Schedule`; reads `delta_t`."""
        return cls(section.delta_t)

    @property
    def end(self) -> float:
        """See `Schedule`."""
        return 1 + self.delta_t

    @property
    def phases(self) -> tuple[LinearPhase, ...]:
        """Semantics alone, both streams, textures alone: those of the three that are not empty."""
        three = (
            LinearPhase(0.0, self.delta_t, Streams(0.0, 1.0), Streams(0.0, 0.0)),
            LinearPhase(self.delta_t, 1.0, Streams(1.0, 1.0), Streams(-self.delta_t, 0.0)),
            LinearPhase(1.0, self.end, Streams(1.0, 0.0), Streams(-self.delta_t, 1.0)),
        )
        return tuple(phase for phase in three if phase.end > phase.start)

    def times(self, progress: Tensor) -> Streams[Tensor]:
        """See `Schedule`."""
        return Streams((progress - self.delta_t).clamp(0, 1), progress.clamp(0, 1))


@dataclass(frozen=True)
class WholeSchedule:
    """A whole schedule in place of one phase, for the one-span grid of the reference code, which ignores breakpoints.

    Rates may jump inside it.
    """

    schedule: Schedule

    @property
    def start(self) -> float:
        """See `Phase`."""
        return 0.0

    @property
    def end(self) -> float:
        """See `Phase`."""
        return self.schedule.end

    @property
    def moves(self) -> Streams[bool]:
        """See `Phase`."""
        return Streams(True, True)

    def times(self, progress: float) -> Streams[float]:
        """Those of the phase at `progress`: the later one at a breakpoint, the last one past the end."""
        phase = [phase for phase in self.schedule.phases if phase.start <= max(progress, 0.0)][-1]
        return phase.times(progress)

    def rates(self, progress: float) -> Streams[float]:
        """Those at `progress`, or at the end past it; at a breakpoint a stream that moves on one side moves."""
        progress = min(max(progress, 0.0), self.end)
        touching = [phase.rates(progress) for phase in self.schedule.phases if phase.start <= progress <= phase.end]
        first, last = touching[0], touching[-1]
        return Streams(last.texture or first.texture, last.semantic or first.semantic)

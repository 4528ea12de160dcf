"""Schedules: how far each stream is at every progress T of training and sampling (arXiv 2512.04926, section 3).

Data is at time 1 and noise at time 0. A law is a class with the members of `Schedule`, entered in `sfd_cli.tables`
under the name that `dit.schedule` and `sample.schedule` give; training, solvers and figures use no other members.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self

from torch import Tensor

from sfd_cli.diffusion.latents import Streams
from sfd_cli.tables import SCHEDULES


@dataclass(frozen=True)
class Phase:
    """A stretch of progress on which both streams' times are smooth, so that a solver keeps its order inside it.

    Attributes:
        start: progress at which it begins.
        end: progress at which it ends, larger than `start`.
        times: progress -> both streams' times, continued smoothly past both ends: an adaptive solver evaluates past
            the end of the phase, where the next one must not show.
        rates: progress -> dt/dT of both streams, continued likewise; 0 for a frozen stream.
        moves: whether each stream's time changes in this phase; a stream that does not move is frozen.
    """

    start: float
    end: float
    times: Callable[[float], Streams[float]]
    rates: Callable[[float], Streams[float]]
    moves: Streams[bool]


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


def linear_phase(start: float, end: float, rate: Streams[float], intercept: Streams[float]) -> Phase:
    """A phase on which each stream's time is linear, t = rate * T + intercept."""

    def times(progress: float) -> Streams[float]:
        return Streams(rate.texture * progress + intercept.texture, rate.semantic * progress + intercept.semantic)

    return Phase(start, end, times, lambda progress: rate, Streams(rate.texture != 0, rate.semantic != 0))


def whole_schedule(schedule: Schedule) -> Phase:
    """A schedule as one phase inside which rates may jump, for the reference code's grid, which ignores breakpoints.

    At a breakpoint the times are those of the later phase, and a stream that moves on one side moves. Past the end the
    times go on as in the last phase, the rates stay those at the end.
    """

    def times(progress: float) -> Streams[float]:
        return [phase for phase in schedule.phases if phase.start <= max(progress, 0.0)][-1].times(progress)

    def rates(progress: float) -> Streams[float]:
        progress = min(max(progress, 0.0), schedule.end)
        touching = [phase.rates(progress) for phase in schedule.phases if phase.start <= progress <= phase.end]
        first, last = touching[0], touching[-1]
        return Streams(last.texture or first.texture, last.semantic or first.semantic)

    return Phase(0.0, schedule.end, times, rates, Streams(True, True))


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
    def phases(self) -> tuple[Phase, ...]:
        """Semantics alone, both streams, textures alone: those of the three that are not empty."""
        three = (
            linear_phase(0.0, self.delta_t, Streams(0.0, 1.0), Streams(0.0, 0.0)),
            linear_phase(self.delta_t, 1.0, Streams(1.0, 1.0), Streams(-self.delta_t, 0.0)),
            linear_phase(1.0, self.end, Streams(1.0, 0.0), Streams(-self.delta_t, 1.0)),
        )
        return tuple(phase for phase in three if phase.end > phase.start)

    def times(self, progress: Tensor) -> Streams[Tensor]:
        """See `Schedule`."""
        return Streams((progress - self.delta_t).clamp(0, 1), progress.clamp(0, 1))

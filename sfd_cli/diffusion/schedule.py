"""Schedules: how far each stream is at every progress T of training and sampling (arXiv 2512.04926, section 3).

Data is at time 1 and noise at time 0. A schedule is a path from (0, 0) to (1, 1) in the plane of both streams' times on
which neither goes back. A law is a class with the members of `Schedule`, entered in `sfd_cli.tables` under the name
that `dit.schedule` and `sample.schedule` give; training, solvers and figures use no other members. This module has the
paper's law, `offset`; `sfd_cli.diffusion.laws` has the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from sfd_cli.devices import finest
from sfd_cli.diffusion.latents import Streams
from sfd_cli.laws import law_name
from sfd_cli.tables import SCHEDULES

Time = TypeVar("Time", float, Tensor)

# Bisections that find a progress to less than float32's rounding.
HALVINGS = 36


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


class TimesOnly(Protocol):
    """Both streams' times as functions of progress T, which runs from 0 (all noise) to `end` (all data)."""

    @property
    def end(self) -> float:
        """Progress at which both streams are data."""

    def times(self, progress: Tensor) -> Streams[Tensor]:
        """Both streams' times in [0, 1], of the shape and dtype of `progress` in [0, end]; never falling.

        Of operations that PyTorch differentiates: the objective takes its rates from them.
        """


class Schedule(TimesOnly, Protocol):
    """A law: times for training, and the phases by which solvers and figures go."""

    @classmethod
    def from_settings(cls, section: Any) -> Self:
        """The law that the section `dit`, `guide` or `sample` of the settings describes."""

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Phases that cover 0 to `end` without gaps, in order; one at least."""


def schedule_of(section: Any) -> Schedule:
    """The law that a section of the settings names, see `laws.law_name`."""
    law: Schedule = SCHEDULES[str(law_name(section))].from_settings(section)
    return law


def shifted(u: Time, k: float | Tensor) -> Time:
    """The time shift `k u / (1 + (k - 1) u)` on [0, 1]: a lead of ln k in logit time. Its inverse has 1 / k.

    Data seen through noise at time u has the signal-to-noise ratio of data k times as large at the shifted time.
    """
    return k * u / (1 + (k - 1) * u)  # type: ignore[return-value]


def with_lead(times: Streams[Tensor], lead: Tensor) -> Streams[Tensor]:
    """Both streams' times with `lead` on top in logit time, half of it for either; a stream at 0 or 1 stays there."""
    ahead = (lead / 2).exp()
    return Streams(shifted(times.texture, 1 / ahead), shifted(times.semantic, ahead))


def progress_of(schedule: TimesOnly, times: Tensor, by_texture: Tensor) -> Tensor:
    """Progress (B,) at which the textures, or where `by_texture` (B,) is false the semantics, are at `times` (B,).

    The times are in (0, 1), where it is unique; float32, by bisection in float64 where the device has that.
    """
    wanted = times.to(finest(times.device))
    low, high = torch.zeros_like(wanted), torch.full_like(wanted, schedule.end)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        is_before = torch.where(by_texture, *schedule.times(middle)) < wanted
        low, high = torch.where(is_before, middle, low), torch.where(is_before, high, middle)
    return high.to(torch.float32)


def rates_of(schedule: TimesOnly, progress: Tensor) -> Streams[Tensor]:
    """The derivatives dt/dT of both streams' times at `progress` (B,), 0 where a stream stands still."""
    with torch.enable_grad():
        progress = progress.detach().requires_grad_()
        times = schedule.times(progress)
        texture, semantic = (torch.autograd.grad(time.sum(), progress, retain_graph=True)[0] for time in times)
    return Streams(texture, semantic)


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

"""Solvers of the sampling ODE, dx/dT = (dt/dT) v per stream, from noise at T = 0 to data at the schedule's end.

A stochastic solver goes by the SDE of the same distributions instead, see `diffusion.wiener`.

The right-hand side jumps where a stream starts or stops. By phases, the default, every phase is integrated on its
own grid that ends on the breakpoint, so a solver keeps its order; one-span is the equal grid of the reference code,
which steps across the jumps, kept because published numbers were made with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sfd_cli.diffusion.dormand_prince import dormand_prince
from sfd_cli.diffusion.guidance import VelocityField, guide_moving
from sfd_cli.diffusion.latents import LatentSpace
from sfd_cli.diffusion.schedule import Phase, Schedule
from sfd_cli.diffusion.time_grid import stretches
from sfd_cli.diffusion.wiener import Normals, Wiener
from sfd_cli.tables import SOLVERS

Slope = Callable[[float, Tensor], Tensor]
"""(T, x) -> dx/dT."""
OnPoint = Callable[[float, Tensor], Tensor | None]
"""Called with every point of the solution, (T, x): the start, and the end of every step.

Another tensor that it gives back takes the solution's place, and solving begins anew from there.
"""
Amend = Callable[[Slope, Phase], Slope]
"""(slope, phase) -> the slope that is integrated in its place inside the phase."""


class Tolerance(NamedTuple):
    """Bound of an adaptive solver on the estimated error of a step: atol + rtol * |x|."""

    rtol: float
    atol: float


@dataclass(frozen=True)
class Solver:
    """A solver, entered in `sfd_cli.tables` under the name that `sample.solver` gives.

    Attributes:
        solve: (slope, x, points, tolerance) -> the solution (T, x) after every step, where x starts at the first of
            the ascending `points`. The last (T, x) is at the last point. A stochastic one takes
            the phase's `Wiener` as the keyword `wiener` as well.
        is_adaptive: whether it chooses its steps by the tolerance and ignores the points between first and last;
            otherwise it takes one step from each point to the next and ignores the tolerance.
        images_at_once: how many images to integrate together where the step length depends on all of them: a fixed
            number, so that an image does not depend on the batch size. None where images are independent.
        is_stochastic: whether it draws noise in every step.
    """

    solve: Callable[..., Iterator[tuple[float, Tensor]]]
    is_adaptive: bool = False
    images_at_once: int | None = None
    is_stochastic: bool = False

    @property
    def unused(self) -> set[str]:
        """Settings of the section `sample` that it ignores."""
        unused = {"steps", "shift"} if self.is_adaptive else {"rtol", "atol"}
        unused |= set() if self.is_stochastic else {"last_step"}
        return unused if self.images_at_once else unused | {"images_at_once"}


@dataclass
class CallCounter:
    """A velocity field that counts its calls, the cost by which solvers are compared."""

    velocity: VelocityField
    calls: int = 0

    def __call__(self, x: Tensor, t_texture: Tensor, t_semantic: Tensor, rows: Tensor) -> Tensor:
        """See `VelocityField`."""
        self.calls += 1
        return self.velocity(x, t_texture, t_semantic, rows)


def integrate(
    velocity: VelocityField,
    noise: Tensor,
    rows: Tensor,
    schedule: Schedule,
    space: LatentSpace,
    *,
    solver: str = "ab3",
    steps: int = 24,
    grid: Literal["phases", "one-span"] = "phases",
    shift: float = 1.0,
    rtol: float = 1e-3,
    atol: float = 1e-6,
    last_step: float = 0.04,
    normals: Normals | None = None,
    on_point: OnPoint | None = None,
    amend: Amend | None = None,
    start: float = 0.0,
) -> Tensor:
    """Integrate from noise to data. By phases, a stream that is frozen keeps its values bit for bit.

    Network calls: `steps` by euler and euler_maruyama, twice as many by heun, one more per phase by ab2 and ab3; dopri5
    decides.

    Args:
        velocity: the (guided) velocity field.
        noise: (B, C, h, w), the latent at T = `start`: noise at 0.
        rows: (B,) int64, the condition of each image.
        schedule: when each stream moves.
        space: which channels are whose.
        solver: a name of the table SOLVERS.
        steps: over the whole schedule, every phase takes one at least; unused by an adaptive solver.
        grid: "phases" or "one-span".
        shift: k of the time shift, see `schedule.shifted`; below 1 puts more points near noise. Unused by an
            adaptive solver.
        rtol: relative tolerance of an adaptive solver.
        atol: absolute tolerance of an adaptive solver.
        last_step: how much of its own time a stream's last step covers, by a stochastic solver, without noise.
        normals: draws the noise of a stochastic solver's steps, which needs it.
        on_point: called with the points of the solution, `count_steps` times after the start; of an adaptive solver
            only where phases end. A solution that it changes costs a multistep solver its history.
        amend: puts another right-hand side in the place of each phase's; None leaves them.
        start: progress at which to begin, from 0 to the schedule's end; steps before it are left out.

    Returns:
        The latent (B, C, h, w) at the schedule's end.
    """
    if steps < 1 or shift <= 0:
        raise ValueError(f"steps ({steps}) must be at least 1 and shift ({shift}) positive")
    chosen = SOLVERS[solver]
    if chosen.is_stochastic and (normals is None or grid != "phases"):
        raise ValueError(f"{solver} needs normals to draw from, and the grid 'phases', which ends where a stream does")
    tell = on_point or (lambda progress, x: None)
    x = _or(tell(start, noise), noise)
    last = last_step if chosen.is_stochastic else None
    for phase, points in stretches(schedule, steps, grid, shift, last, start):
        slope = _slope(velocity, rows, space, phase)
        if amend is not None:
            slope = amend(slope, phase)
        solve = chosen.solve
        if chosen.is_stochastic and normals is not None:
            solve = partial(solve, wiener=Wiener(phase, space, normals))
        while len(points) > 1:
            before = x
            for progress, after in solve(slope, x, points, Tolerance(rtol, atol)):
                solution = _keep_frozen(before, after, phase, space)
                x = _or(tell(progress, solution), solution)
                if x is not solution:
                    break
            points = [point for point in points if point >= progress]
    return x


def count_steps(
    schedule: Schedule,
    *,
    solver: str = "ab3",
    steps: int = 24,
    grid: str = "phases",
    shift: float = 1.0,
    last_step: float = 0.04,
    start: float = 0.0,
) -> int:
    """How often `integrate` calls `on_point` after the start, by the same arguments."""
    found = stretches(schedule, steps, grid, shift, last_step if SOLVERS[solver].is_stochastic else None, start)
    return len(found) if SOLVERS[solver].is_adaptive else sum(len(points) - 1 for _, points in found)


def _or(changed: Tensor | None, solution: Tensor) -> Tensor:
    return solution if changed is None else changed


def _slope(velocity: VelocityField, rows: Tensor, space: LatentSpace, phase: Phase) -> Slope:
    """The right-hand side inside a phase: each stream's velocity times the rate of its time."""

    def slope(progress: float, x: Tensor) -> Tensor:
        times, rates = phase.times(progress), phase.rates(progress)
        t_texture, t_semantic = (torch.full((x.shape[0],), t, dtype=x.dtype, device=x.device) for t in times)
        streams = space.views(guide_moving(velocity, rates)(x, t_texture, t_semantic, rows))
        # Not rate * velocity: the velocity of a frozen stream is undefined and may be NaN.
        moving = [rate * v if rate else torch.zeros_like(v) for v, rate in zip(streams, rates, strict=True)]
        return torch.cat(moving, dim=1)

    return slope


def _keep_frozen(before: Tensor, after: Tensor, phase: Phase, space: LatentSpace) -> Tensor:
    """`after` with the values that a frozen stream had before: an adaptive solver's interpolation rounds them."""
    if all(phase.moves):
        return after
    streams = zip(space.views(before), space.views(after), phase.moves, strict=True)
    return torch.cat([new if moves else old for old, new, moves in streams], dim=1)


def _euler(slope: Slope, x: Tensor, points: list[float], tolerance: Tolerance) -> Iterator[tuple[float, Tensor]]:
    for start, end in pairwise(points):
        x = x + (end - start) * slope(start, x)
        yield end, x


def _euler_maruyama(
    slope: Slope, x: Tensor, points: list[float], tolerance: Tolerance, wiener: Wiener
) -> Iterator[tuple[float, Tensor]]:
    """Weak order 1. Each stream's last step is its drift's alone."""
    drift = wiener.drift(slope)
    for start, end in pairwise(points):
        x = x + (end - start) * drift(start, x) + wiener.noise(start, end, x)
        yield end, x


def _heun(slope: Slope, x: Tensor, points: list[float], tolerance: Tolerance) -> Iterator[tuple[float, Tensor]]:
    """The trapezoidal predictor-corrector, order 2."""
    for start, end in pairwise(points):
        first = slope(start, x)
        second = slope(end, x + (end - start) * first)
        x = x + (end - start) / 2 * (first + second)
        yield end, x


def _adams_bashforth(
    slope: Slope, x: Tensor, points: list[float], tolerance: Tolerance, order: int
) -> Iterator[tuple[float, Tensor]]:
    """Adams-Bashforth of `order` 2 or 3 with variable steps; the first step has no earlier slope, so Heun takes it."""
    past: list[tuple[float, Tensor]] = []  # where slopes were taken, the latest first
    for start, end in pairwise(points):
        step = end - start
        here = slope(start, x)
        if past:
            weights = extrapolation_weights(step, [start - progress for progress, _ in past])
            increment = weights[0] * here
            for weight, (_, before) in zip(weights[1:], past, strict=True):
                increment = increment + weight * before
            x = x + step * increment
        else:
            x = x + step / 2 * (here + slope(end, x + step * here))
        yield end, x
        past = [(start, here), *past][: order - 1]


def extrapolation_weights(step: float, ages: list[float]) -> list[float]:
    """Weights of the slope here and of one or two earlier ones, `ages` ago, in the mean slope of the coming step.

    They integrate the line, or the parabola, through these slopes exactly over the step.
    """
    last = ages[0]
    if len(ages) == 1:
        half_ratio = step / (2 * last)
        return [1 + half_ratio, -half_ratio]
    first = ages[1]
    half, third = step / 2, step**2 / 3
    return [
        1 + (half * (last + first) + third) / (last * first),
        -(half * first + third) / (last * (first - last)),
        (half * last + third) / (first * (first - last)),
    ]


def _dopri5(slope: Slope, x: Tensor, points: list[float], tolerance: Tolerance) -> Iterator[tuple[float, Tensor]]:
    """Dormand-Prince of order 5 with adaptive steps; its error norm is over all images together."""
    yield points[-1], dormand_prince(slope, x, points[0], points[-1], tolerance.rtol, tolerance.atol)


euler = Solver(_euler)
heun = Solver(_heun)
ab2 = Solver(partial(_adams_bashforth, order=2))
ab3 = Solver(partial(_adams_bashforth, order=3))
dopri5 = Solver(_dopri5, is_adaptive=True, images_at_once=16)
euler_maruyama = Solver(_euler_maruyama, is_stochastic=True)

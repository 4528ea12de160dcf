"""Solvers of the sampling ODE, dz/dT = v_z and ds/dT = v_s from noise at T = 0 to data at T = 1 + delta_t.

The right-hand side jumps where a stream starts or stops. By phases, the default, every phase is integrated on its
own grid that ends on the breakpoint, so a solver keeps its order; one-span is the equal grid of the reference code,
which steps across the jumps, kept because published numbers were made with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from sfd_cli.diffusion.guidance import VelocityField, guide_moving
from sfd_cli.diffusion.objective import split_streams
from sfd_cli.diffusion.schedule import AsynchronousSchedule, Phase

Slope = Callable[[float, Tensor], Tensor]
"""(T, x) -> dx/dT."""
OnPoint = Callable[[float, Tensor], None]
"""Told every point of the solution, (T, x): the start, and the end of every step."""
FixedStepSolver = Callable[[Slope, Tensor, list[float], OnPoint], Tensor]
"""(slope, x, points, on_point) -> x at the last point."""


@dataclass
class CallCounter:
    """A velocity field that counts how often it is called: the cost that solvers are compared by."""

    velocity: VelocityField
    calls: int = 0

    def __call__(self, x: Tensor, t_texture: Tensor, t_semantic: Tensor, labels: Tensor) -> Tensor:
        """See `VelocityField`."""
        self.calls += 1
        return self.velocity(x, t_texture, t_semantic, labels)


def integrate(
    velocity: VelocityField,
    noise: Tensor,
    labels: Tensor,
    schedule: AsynchronousSchedule,
    semantic_channels: int,
    *,
    solver: Literal["euler", "heun", "ab2", "ab3", "dopri5"] = "ab3",
    steps: int = 24,
    grid: Literal["phases", "one-span"] = "phases",
    shift: float = 1.0,
    rtol: float = 1e-3,
    atol: float = 1e-6,
    on_point: OnPoint | None = None,
) -> Tensor:
    """Integrate from noise to data. By phases, a stream that is frozen keeps its values bit for bit.

    Network calls: `steps` by euler, twice that by heun, `steps` and one more per phase by ab2 and ab3; dopri5 decides.

    Args:
        velocity: the (guided) velocity field.
        noise: (B, C, h, w), the latent at T = 0.
        labels: (B,) int64.
        schedule: when each stream moves.
        semantic_channels: how many of the last channels are semantic.
        solver: euler; heun, the trapezoidal predictor-corrector; ab2 and ab3, Adams-Bashforth of order 2 and 3, which
            start every phase with a step of heun; dopri5, adaptive, its step size shared by the whole batch.
        steps: over the whole schedule, unused by dopri5; every phase takes one at least.
        grid: "phases" or "one-span".
        shift: k of the time shift, see `shifted`; unused by dopri5.
        rtol: relative tolerance of dopri5.
        atol: absolute tolerance of dopri5.
        on_point: told the points of the solution; dopri5 tells those where a phase ends only.

    Returns:
        The latent (B, C, h, w) at the schedule's end.
    """
    if steps < 1 or shift <= 0:
        raise ValueError(f"steps ({steps}) must be at least 1 and shift ({shift}) positive")
    tell = on_point or (lambda progress, x: None)
    x = noise
    tell(0.0, x)
    for points, phase in _spans(schedule, steps, grid, shift):
        slope = _slope(velocity, labels, schedule, semantic_channels, phase)
        if solver == "dopri5":
            end = _dopri5(slope, x, points[0], points[-1], rtol, atol)
            x = _keep_frozen(x, end, phase, semantic_channels) if phase else end
            tell(points[-1], x)
        else:
            x = FIXED_STEP_SOLVERS[solver](slope, x, points, tell)
    return x


def shifted(u: float, k: float) -> float:
    """The time shift `k u / (1 + (k - 1) u)` on [0, 1]: k below 1 puts more points near noise. Inverse: 1 / k."""
    return k * u / (1 + (k - 1) * u)


def phase_points(schedule: AsynchronousSchedule, steps: int, shift: float = 1.0) -> list[list[float]]:
    """Points of every phase, ascending, both ends included.

    The shift belongs to the whole schedule: with u the coordinate in which the one-span grid is equally spaced,
    each phase gets steps in proportion to its share of u and is equally spaced in u. So the density of points is
    the one-span grid's, and the shift does not restart at each breakpoint.
    """
    back = 1 / shift
    in_u = [(shifted(p.start / schedule.end, back), shifted(p.end / schedule.end, back)) for p in schedule.phases]
    counts = allot(steps, [end - start for start, end in in_u])
    grids = []
    for phase, (start, end), count in zip(schedule.phases, in_u, counts, strict=True):
        inner = [schedule.end * shifted(start + (end - start) * i / count, shift) for i in range(1, count)]
        # The ends come from the phase itself: rounding must not put a point on the far side of a jump.
        grids.append([phase.start, *inner, phase.end])
    return grids


def allot(total: int, shares: list[float]) -> list[int]:
    """Split `total` steps over phases in proportion to `shares` by largest remainder, one at least for each."""
    exact = [total * share / sum(shares) for share in shares]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    while 0 in counts and sum(counts) > sum(count > 0 for count in counts):
        counts[counts.index(max(counts))] -= 1
        counts[counts.index(0)] += 1
    return [max(count, 1) for count in counts]


def _spans(
    schedule: AsynchronousSchedule, steps: int, grid: str, shift: float
) -> list[tuple[list[float], Phase | None]]:
    """Stretches to integrate one after another: their points, and the phase whose rates hold all along."""
    if grid == "one-span":
        return [([schedule.end * shifted(i / steps, shift) for i in range(steps + 1)], None)]
    return list(zip(phase_points(schedule, steps, shift), schedule.phases, strict=True))


def _slope(
    velocity: VelocityField,
    labels: Tensor,
    schedule: AsynchronousSchedule,
    semantic_channels: int,
    phase: Phase | None,
) -> Slope:
    """The right-hand side, with a phase's rates or, without one, those of the point where it is evaluated."""

    def slope(progress: float, x: Tensor) -> Tensor:
        times = (phase or schedule.phase_at(progress)).times(progress)
        t_texture, t_semantic = (torch.full((x.shape[0],), t, dtype=x.dtype, device=x.device) for t in times)
        rates = phase.rates if phase else schedule.rates(progress)
        guided = guide_moving(velocity, rates)
        streams = split_streams(guided(x, t_texture, t_semantic, labels), semantic_channels)
        # Not rate * velocity: what a network says of a frozen stream may be anything, a NaN too.
        moving = [rate * v if rate else torch.zeros_like(v) for v, rate in zip(streams, rates, strict=True)]
        return torch.cat(moving, dim=1)

    return slope


def _euler(slope: Slope, x: Tensor, points: list[float], tell: OnPoint) -> Tensor:
    for start, end in pairwise(points):
        x = x + (end - start) * slope(start, x)
        tell(end, x)
    return x


def _heun(slope: Slope, x: Tensor, points: list[float], tell: OnPoint) -> Tensor:
    for start, end in pairwise(points):
        first = slope(start, x)
        second = slope(end, x + (end - start) * first)
        x = x + (end - start) / 2 * (first + second)
        tell(end, x)
    return x


def _adams_bashforth(order: int) -> FixedStepSolver:
    """Adams-Bashforth of `order` 2 or 3 with variable steps; the first step has no earlier slope, so Heun takes it."""

    def solve(slope: Slope, x: Tensor, points: list[float], tell: OnPoint) -> Tensor:
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
            tell(end, x)
            past = [(start, here), *past][: order - 1]
        return x

    return solve


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


FIXED_STEP_SOLVERS: dict[str, FixedStepSolver] = {
    "euler": _euler,
    "heun": _heun,
    "ab2": _adams_bashforth(2),
    "ab3": _adams_bashforth(3),
}


def _dopri5(slope: Slope, x: Tensor, start: float, end: float, rtol: float, atol: float) -> Tensor:
    from torchdiffeq import odeint

    ends = torch.tensor([start, end], dtype=torch.float64)
    return odeint(lambda t, y: slope(float(t), y), x, ends, rtol=rtol, atol=atol, method="dopri5")[-1]


def _keep_frozen(before: Tensor, after: Tensor, phase: Phase, semantic_channels: int) -> Tensor:
    """`after` with the frozen stream of `before`, which the adaptive solver's interpolation moves by rounding."""
    streams = zip(split_streams(before, semantic_channels), split_streams(after, semantic_channels), strict=True)
    return torch.cat([new if rate else old for (old, new), rate in zip(streams, phase.rates, strict=True)], dim=1)

"""What else could lower the error of sampling at equal network calls; each idea against the recommended setting.

The models are trained ones, as in sampling.py. What pays became part of the solver; what stands here did not.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import harness
import torch
from sampling import RECOMMENDED, SCALE, TIGHT, Problem, load, parser, problem, root_mean_square
from torch import Tensor

from sfd_cli.config import Sample
from sfd_cli.diffusion.latents import Streams
from sfd_cli.diffusion.schedule import Phase
from sfd_cli.diffusion.solver import Slope, Solver, Tolerance, ab3, extrapolation_weights
from sfd_cli.pipeline.sampler import Flow, sample_latents

STEPS = RECOMMENDED["steps"]
Solution = Iterator[tuple[float, Tensor]]


def midpoint(slope: Slope, x: Tensor, points: list[float], tolerance: Tolerance) -> Solution:
    """The explicit midpoint rule, order 2, two calls a step."""
    for start, end in pairwise(points):
        step = end - start
        x = x + step * slope(start + step / 2, x + step / 2 * slope(start, x))
        yield end, x


def classic(slope: Slope, x: Tensor, points: list[float], tolerance: Tolerance) -> Solution:
    """The classic Runge-Kutta method, order 4, four calls a step."""
    for start, end in pairwise(points):
        step = end - start
        one = slope(start, x)
        two = slope(start + step / 2, x + step / 2 * one)
        three = slope(start + step / 2, x + step / 2 * two)
        x = x + step / 6 * (one + 2 * two + 2 * three + slope(end, x + step * three))
        yield end, x


def started_by_euler(slope: Slope, x: Tensor, points: list[float], tolerance: Tolerance) -> Solution:
    """ab3 whose first step is one of Euler, which saves the second call of Heun."""
    past: list[tuple[float, Tensor]] = []
    for start, end in pairwise(points):
        here = slope(start, x)
        x = x + (end - start) * extrapolated(here, past, start, end)
        yield end, x
        past = [(start, here), *past][:2]


def extrapolated(here: Tensor, past: list[tuple[float, Tensor]], start: float, end: float) -> Tensor:
    """The mean slope of the step from `start` to `end`, from that at its start and earlier ones."""
    if not past:
        return here
    weights = extrapolation_weights(end - start, [start - progress for progress, _ in past])
    return weights[0] * here + sum(weight * slope for weight, (_, slope) in zip(weights[1:], past, strict=True))


def carried_over(here: Problem, steps: int) -> Tensor:
    """ab3 over all phases, with the network's velocities before a breakpoint, frozen streams' too, used after it."""
    x, past = here.noise, []
    for phase, points in zip(here.schedule.phases, equal_points(here, shares(here, steps)), strict=True):
        moving = at_rates(here, phase, x)
        for start, end in pairwise(points):
            velocity = here.velocity(x, *at(phase, start, x), here.labels)
            if past:
                x = x + (end - start) * moving * extrapolated(velocity, past, start, end)
            else:
                ahead = here.velocity(x + (end - start) * moving * velocity, *at(phase, end, x), here.labels)
                x = x + (end - start) / 2 * moving * (velocity + ahead)
            past = [(start, velocity), *past][:2]
    return x


def at(phase: Phase, progress: float, x: Tensor) -> list[Tensor]:
    """Both streams' times, (B,) each."""
    return [torch.full((len(x),), t, dtype=x.dtype, device=x.device) for t in phase.times(progress)]


def at_rates(here: Problem, phase: Phase, x: Tensor) -> Tensor:
    """Rates of the streams' times, which are constant in a phase, over the channels: (1, C, 1, 1)."""
    rates = [torch.full((1,), rate, dtype=x.dtype, device=x.device) for rate in phase.rates(phase.start)]
    return here.space.spread(Streams(*rates))


def by_phases(here: Problem, solver: Solver, counts: list[int]) -> Tensor:
    """A solver with so many equal steps in each phase."""
    x = here.noise
    for phase, points in zip(here.schedule.phases, equal_points(here, counts), strict=True):

        def slope(progress: float, x: Tensor, phase: Phase = phase) -> Tensor:
            return at_rates(here, phase, x) * here.velocity(x, *at(phase, progress, x), here.labels)

        *_, (_, x) = solver.solve(slope, x, points, Tolerance(0.0, 0.0))
    return x


def equal_points(here: Problem, counts: list[int]) -> list[list[float]]:
    """Equally spaced points of every phase."""
    return [
        [phase.start + (phase.end - phase.start) * i / count for i in range(count)] + [phase.end]
        for phase, count in zip(here.schedule.phases, counts, strict=True)
    ]


def shares(here: Problem, steps: int, first: float = 1.0, last: float = 1.0) -> list[int]:
    """Steps in proportion to the phases' lengths, the first and the last one weighted."""
    lengths = [phase.end - phase.start for phase in here.schedule.phases]
    lengths[0] *= first
    lengths[-1] *= last
    counts = [max(round(steps * length / sum(lengths)), 1) for length in lengths]
    counts[len(counts) // 2] += steps - sum(counts)
    return counts


def ideas(here: Problem) -> Iterator[tuple[str, Any]]:
    """Each idea by name and how to solve, at as many calls as the recommended setting, or one more or less."""
    phases = len(here.schedule.phases)
    calls = STEPS + phases
    yield "recommended", lambda: here.latents(**RECOMMENDED)
    yield "ab2", lambda: here.latents(**{**RECOMMENDED, "solver": "ab2"})
    for shift in (0.7, 1.4):
        yield f"time shift {shift}", lambda shift=shift: here.latents(**RECOMMENDED, shift=shift)
    yield "phase I 1.5 times denser", lambda: by_phases(here, ab3, shares(here, STEPS, first=1.5))
    yield "phase III 1.5 times denser", lambda: by_phases(here, ab3, shares(here, STEPS, last=1.5))
    yield "phases I, III 0.67 times", lambda: by_phases(here, ab3, shares(here, STEPS, 0.67, 0.67))
    yield "ab3 started by Euler", lambda: by_phases(here, Solver(started_by_euler), shares(here, calls))
    yield "history over breakpoints", lambda: carried_over(here, calls - 1)
    yield "midpoint", lambda: by_phases(here, Solver(midpoint), shares(here, calls // 2))
    yield "classic Runge-Kutta", lambda: by_phases(here, Solver(classic), shares(here, calls // 4))


def in_bf16(flow: Flow, here: Problem, guided: bool) -> Tensor:
    """The recommended setting with the network's products in bf16, as `sample.precision` has it."""
    chosen = {"solver": RECOMMENDED["solver"], "steps": STEPS, "delta_t": here.schedule.end - 1, "precision": "bf16"}
    guidance = {"guidance": "autoguidance" if guided else "none", "scale": SCALE}
    return sample_latents(flow.dit, flow.guide, Sample.model_validate(chosen | guidance), here.noise, here.labels)


def main() -> None:
    """Measure, print, save."""
    options = parser(__doc__, [0.3, 1.0]).parse_args()
    sampler = load(options.models, torch.device(options.device))
    errors: dict[str, dict[str, float]] = {}
    for guided in (False, True):
        for delta_t in options.offsets:
            exact = problem(sampler, guided, delta_t, options.images, double=True).latents(**TIGHT).float()
            here = problem(sampler, guided, delta_t, options.images)
            column = f"{delta_t:g}, {'guided' if guided else 'unguided'}"
            bf16 = partial(in_bf16, sampler.flow, here, guided)
            for name, solve in [*ideas(here), ("recommended, in bf16", bf16)]:
                with torch.inference_mode():
                    errors.setdefault(name, {})[column] = root_mean_square(solve() - exact)
    base = errors["recommended"]
    table = [
        {"idea": name} | {column: f"{error:.2e} ({error / base[column]:.2f})" for column, error in row.items()}
        for name, row in errors.items()
    ]
    print("RMSE at an offset, and its ratio to that of the recommended setting:\n")
    harness.table(table)
    harness.save("sampling_ideas", options, {"recommended": RECOMMENDED, "rmse": errors})


if __name__ == "__main__":
    main()

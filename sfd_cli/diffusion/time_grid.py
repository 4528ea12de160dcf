"""The points between which solvers step: by phases, each on a grid of its own, or in one span; from any point on."""

from __future__ import annotations

from itertools import pairwise

from sfd_cli.diffusion.schedule import Phase, Schedule, shifted, whole_schedule
from sfd_cli.diffusion.wiener import leave_last_step

# Progress that differs by less is the same up to rounding.
SAME_POINT = 1e-9


def phase_points(schedule: Schedule, steps: int, shift: float = 1.0) -> list[list[float]]:
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
        # The ends are the phase's own: computed from u, rounding could put a point on the far side of a jump.
        grids.append([phase.start, *inner, phase.end])
    return grids


def allot(total: int, shares: list[float]) -> list[int]:
    """Split `total` steps in proportion to `shares` by largest remainder, at least one for each."""
    exact = [total * share / sum(shares) for share in shares]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    while 0 in counts and sum(counts) > sum(count > 0 for count in counts):
        counts[counts.index(max(counts))] -= 1
        counts[counts.index(0)] += 1
    return [max(count, 1) for count in counts]


def stretches(
    schedule: Schedule, steps: int, grid: str, shift: float, last_step: float | None, start: float
) -> list[tuple[Phase, list[float]]]:
    """Stretches to integrate one after another, with the points of each.

    Args:
        schedule: when each stream moves.
        steps: over the whole schedule.
        grid: "phases" or "one-span", the reference code's, which steps across the breakpoints.
        shift: k of the time shift, see `schedule.shifted`.
        last_step: how much of its own time a stream's last step covers; None: as much as any.
        start: progress at which to begin; what is before it is left out.
    """
    if grid == "one-span":
        points = [schedule.end * shifted(i / steps, shift) for i in range(steps + 1)]
        found = [(whole_schedule(schedule), points)]
    else:
        found = list(zip(schedule.phases, phase_points(schedule, steps, shift), strict=True))
    if last_step is not None:
        found = [(phase, leave_last_step(points, phase, last_step)) for phase, points in found]
    return [(phase, _left(points, start)) for phase, points in found if points[-1] - start > SAME_POINT]


def _left(points: list[float], start: float) -> list[float]:
    """`start` and the points behind it; all of them where it is not behind the first.

    Without the next one where it is nearer than half a step: a multistep solver divides by the length of its steps.
    """
    if start <= points[0]:
        return points
    inner = [end for before, end in pairwise(points[:-1]) if end - start >= (end - before) / 2]
    return [start, *inner, points[-1]]

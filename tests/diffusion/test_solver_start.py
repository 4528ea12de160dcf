"""Solving from a point of the path on: what is left out, and what is as it would have been."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from sfd_cli.diffusion.latents import LatentSpace
from sfd_cli.diffusion.laws import LeadSchedule
from sfd_cli.diffusion.schedule import AsynchronousSchedule, Schedule
from sfd_cli.diffusion.solver import CallCounter, count_steps, integrate

SPACE = LatentSpace(3, 2, 2)
SCHEDULES: list[Schedule] = [AsynchronousSchedule(0.3), AsynchronousSchedule(0.0), LeadSchedule(1.0)]
GRIDS: list[dict[str, Any]] = [
    {"solver": "euler", "steps": 7},
    {"solver": "heun", "steps": 5, "shift": 0.4},
    {"solver": "ab3", "steps": 24},
    {"solver": "ab2", "steps": 9, "grid": "one-span"},
    {"solver": "dopri5"},
]
ROWS = torch.zeros(2, dtype=torch.int64)


def field(x: Tensor, t_texture: Tensor, t_semantic: Tensor, rows: Tensor) -> Tensor:
    """Something that hangs on all it is given."""
    return torch.sin(2 * x) + (t_texture - 2 * t_semantic)[:, None, None, None] - x.mean(dim=1, keepdim=True)


def noise() -> Tensor:
    return torch.randn((2, *(5, 2, 2)), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def points_of(schedule: Schedule, x: Tensor, **options: Any) -> list[tuple[float, Tensor]]:
    found: list[tuple[float, Tensor]] = []
    integrate(field, x, ROWS, schedule, SPACE, on_point=lambda *point: found.append(point), **options)
    return found


@cache
def tight_points(schedule: Schedule) -> list[tuple[float, Tensor]]:
    return points_of(schedule, noise(), solver="heun", steps=2000)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_from_the_beginning_it_is_what_it_is_without_a_start_and_from_the_end_nothing(
    schedule: Schedule, grid: dict[str, Any]
) -> None:
    whole = integrate(field, noise(), ROWS, schedule, SPACE, **grid)
    assert torch.equal(integrate(field, noise(), ROWS, schedule, SPACE, start=0.0, **grid), whole)
    calls = CallCounter(field)
    assert torch.equal(integrate(calls, noise(), ROWS, schedule, SPACE, start=schedule.end, **grid), noise())
    assert calls.calls == 0
    assert count_steps(schedule, start=schedule.end, **grid) == 0


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_from_a_point_of_the_way_it_goes_on_to_the_same_end(schedule: Schedule) -> None:
    """Euler has no history: from its own point after k steps the rest is bit for bit what it was."""
    options = {"solver": "euler", "steps": 12}
    whole = points_of(schedule, noise(), **options)
    for progress, x in whole[1:-1]:
        assert torch.equal(integrate(field, x, ROWS, schedule, SPACE, start=progress, **options), whole[-1][1])


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_wherever_it_starts_it_ends_near_the_exact_solution(schedule: Schedule, grid: dict[str, Any]) -> None:
    """From points of a tight solution; a step much shorter than the next would blow a multistep solver up."""
    tight = tight_points(schedule)
    fine = {**grid, "steps": 60} if "steps" in grid else {**grid, "rtol": 1e-6}
    for number in (1, 7, 333, 1000, 1234, 1999):
        progress, x = tight[number]
        for start in (progress, min(progress * (1 + 1e-15), schedule.end), progress * (1 - 1e-15)):
            found = integrate(field, x, ROWS, schedule, SPACE, start=start, **fine)
            assert (found - tight[-1][1]).abs().max() < (0.05 if grid["solver"] == "euler" else 0.02)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("start", [0.0, 0.1, 0.3, 0.5, 0.999, 1.2])
def test_steps_are_counted_as_they_are_told(grid: dict[str, Any], start: float) -> None:
    schedule = AsynchronousSchedule(0.3)
    told = points_of(schedule, noise(), start=start, **grid)
    assert told[0][0] == start
    assert len(told) - 1 == count_steps(schedule, start=start, **grid)
    progress = [point for point, _ in told]
    assert progress == sorted(set(progress))
    assert progress[-1] == schedule.end


def test_the_first_step_is_between_half_a_step_and_one_and_a_half() -> None:
    schedule = AsynchronousSchedule(0.0)
    for start in torch.linspace(0.01, 0.79, 40).tolist():
        told = [point for point, _ in points_of(schedule, noise(), start=start, solver="euler", steps=10)]
        assert 0.05 - 1e-9 <= told[1] - told[0] <= 0.15 + 1e-9
        assert told[2] - told[1] == pytest.approx(0.1)


def test_a_stream_that_is_frozen_before_the_start_stays_as_it_is_given() -> None:
    schedule, given = AsynchronousSchedule(0.3), noise()
    found = integrate(field, given, ROWS, schedule, SPACE, start=1.1, steps=8)
    assert torch.equal(found[:, 3:], given[:, 3:]), "semantics have come to their end at T = 1"
    assert (found[:, :3] - given[:, :3]).abs().max() > 1e-3

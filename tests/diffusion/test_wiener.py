"""Euler-Maruyama on Gaussian data, whose velocity is known: its steps, its order, its distribution, its grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sfd_cli.diffusion.latents import LatentSpace
from sfd_cli.diffusion.laws import CurveSchedule, KnotSchedule, LeadSchedule
from sfd_cli.diffusion.schedule import AsynchronousSchedule, Schedule
from sfd_cli.diffusion.solver import CallCounter, count_steps, integrate
from sfd_cli.diffusion.time_grid import phase_points
from sfd_cli.diffusion.wiener import leave_last_step

PAIR = LatentSpace(texture=1, semantic=1, grid=1)
# Data: one texture and one semantic channel, correlated, so that the streams' scores hang together.
MEAN = np.array([1.5, -0.7])
COVARIANCE = np.array([[0.8, 0.5], [0.5, 0.6]])
SCHEDULES: list[Schedule] = [
    AsynchronousSchedule(0.0),
    AsynchronousSchedule(0.3),
    AsynchronousSchedule(1.0),
    CurveSchedule(1.0, 0.5),
    KnotSchedule(((0.4, 0.0), (0.6, 0.2))),
]


def gaussian_velocity(x: Tensor, t_texture: Tensor, t_semantic: Tensor, rows: Tensor) -> Tensor:
    """E[data - noise | x] where x = A data + (1 - A) noise, A being the times on the diagonal, one for all images."""
    times = torch.diag(torch.stack((t_texture[0], t_semantic[0]))).double()
    mean, covariance = torch.from_numpy(MEAN), torch.from_numpy(COVARIANCE)
    left = torch.eye(2, dtype=torch.float64) - times
    whole = times @ covariance @ times + left @ left
    known = torch.linalg.solve(whole, (x[:, :, 0, 0] - times @ mean).T)
    return (mean[:, None] + (covariance @ times - left) @ known).T[:, :, None, None]


def solved(x: Tensor, schedule: Schedule, normals: Callable[[], Tensor] | None, steps: int, **options: Any) -> Tensor:
    rows = torch.zeros(len(x), dtype=torch.int64)
    options = {"solver": "euler_maruyama"} | options
    found = integrate(gaussian_velocity, x, rows, schedule, PAIR, steps=steps, normals=normals, **options)
    return found[:, :, 0, 0]


def columns(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64)[:, :, None, None]


def exact_moments(schedule: Schedule, steps: int, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the samples, without sampling: the solver is affine in its noise.

    Row 0 has no noise at all; every other row has one unit of one of the noises, the start's or a step's.
    """
    count = 2 * (1 + steps)
    units = torch.zeros(1 + steps, count + 1, 2, 1, 1, dtype=torch.float64)
    for row in range(count):
        units[row // 2, row + 1, row % 2] = 1
    draws = iter(units[1:])
    ends = solved(units[0], schedule, lambda: next(draws), steps, **options).numpy()
    spread = ends[1:] - ends[0]
    return ends[0], spread.T @ spread


def by_numpy(x: np.ndarray, delta_t: float, steps: int, last: float, noises: Iterator[np.ndarray]) -> np.ndarray:
    """The same in NumPy, from the score: dx = (v + w s) dt + sqrt(2 w) dW with w = 1 - t, stream by stream in turn.

    The steps of a phase are in proportion to its length, and the one that ends a stream is `last` of its time long.
    """
    ends = [end for end in (delta_t, 1.0, 1.0 + delta_t) if end > 0]
    points, start = [0.0], 0.0
    for end in sorted(set(ends)):
        count = round(steps * (end - start) / (1 + delta_t))
        is_last = end >= 1
        inner = np.linspace(start, end - last, count)[1:] if is_last else np.linspace(start, end, count + 1)[1:-1]
        points += [*inner, end]
        start = end
    for before, after in pairwise(points):
        t = np.array([np.clip(before - delta_t, 0, 1), np.clip(before, 0, 1)])
        dt = np.array([np.clip(after - delta_t, 0, 1), np.clip(after, 0, 1)]) - t
        dw = np.sqrt(dt) * next(noises)
        whole = np.diag(t) @ COVARIANCE @ np.diag(t) + np.diag((1 - t) ** 2)
        known = np.linalg.solve(whole, (x - t * MEAN).T).T
        v = MEAN + known @ (np.diag(t) @ COVARIANCE - np.diag(1 - t))
        score = -known  # of the Gaussian itself, no velocity in it
        w = 1 - t
        ended = np.isclose(t + dt, 1) & (dt > 0)
        x = x + (v + w * score) * dt + np.where(ended, 0, np.sqrt(2 * w)) * dw
    return x


@pytest.mark.parametrize("delta_t", [0.0, 0.25, 1.0])
def test_for_given_increments_it_is_the_scheme_written_from_the_score(delta_t: float) -> None:
    steps, rng = 40, np.random.default_rng(0)
    start, noises = rng.normal(size=(5, 2)), rng.normal(size=(steps, 5, 2))
    draws = iter(noises)
    found = solved(columns(start), AsynchronousSchedule(delta_t), lambda: columns(next(draws)), steps)
    expected = by_numpy(start, delta_t, steps, 0.04, iter(noises))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)
    assert next(draws, None) is None, "one draw a step"


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_mean_and_covariance_come_to_those_of_the_data_at_order_one(schedule: Schedule) -> None:
    def errors(steps: int, **options: Any) -> list[float]:
        mean, covariance = exact_moments(schedule, steps, **options)
        return [float(np.abs(mean - MEAN).max()), float(np.abs(covariance - COVARIANCE).max())]

    coarse, fine = (errors(steps, last_step=1 / steps) for steps in (100, 200))
    if isinstance(schedule, CurveSchedule):
        assert math.log2(coarse[0] / fine[0]) == pytest.approx(1, abs=0.05)
    else:
        assert coarse[0] < 1e-12, "a mean goes straight, and steps along its line are exact"
    assert math.log2(coarse[1] / fine[1]) == pytest.approx(1, abs=0.05)
    assert fine[1] < 0.01
    assert errors(100, solver="heun")[1] < 2e-4, "the ODE comes to the same"


def test_drawn_samples_are_distributed_as_those_of_the_ode() -> None:
    count, generator, schedule = 20_000, torch.Generator().manual_seed(0), AsynchronousSchedule(0.3)

    def draw() -> Tensor:
        return torch.randn(count, 2, 1, 1, generator=generator, dtype=torch.float64)

    start = draw()
    by_sde, by_ode = (
        solved(start, schedule, draw, 200).numpy(),
        solved(start, schedule, None, 40, solver="heun").numpy(),
    )
    error = np.sqrt(2 * np.diag(COVARIANCE) / count)
    assert np.all(np.abs(by_sde.mean(0) - by_ode.mean(0)) < 4 * error + 0.01)
    assert np.cov(by_sde.T) == pytest.approx(np.cov(by_ode.T), abs=0.03)
    together = np.corrcoef(by_sde[:, 0], by_ode[:, 0])[0, 1]
    assert together < 0.6, "what comes of a start is drawn"


def test_the_published_grid_is_249_equal_steps_and_one_of_four_hundredths() -> None:
    """SiT's `linspace(0, 0.96, 250)` and its last step, and REPA's `linspace(1, 0.04, 250)`, then 0."""
    schedule, points = AsynchronousSchedule(0.0), []
    counter = CallCounter(gaussian_velocity)
    draws: list[None] = []

    def draw() -> Tensor:
        draws.append(None)
        return torch.ones(1, 2, 1, 1, dtype=torch.float64)

    integrate(
        counter,
        columns([[0.0, 0.0]]),
        torch.zeros(1, dtype=torch.int64),
        schedule,
        PAIR,
        solver="euler_maruyama",
        steps=250,
        normals=draw,
        on_point=lambda progress, x: points.append(progress),
    )
    np.testing.assert_allclose(points, [*np.linspace(0, 0.96, 250), 1])
    assert counter.calls == len(draws) == count_steps(schedule, solver="euler_maruyama", steps=250) == 250


def _last_times(schedule: Schedule, last_step: float) -> list[list[float]]:
    """Of every phase that ends a stream: the time that its streams have to go in the phase's last step."""
    found = []
    for phase, points in zip(schedule.phases, phase_points(schedule, 40), strict=True):
        squeezed = leave_last_step(points, phase, last_step)
        assert len(squeezed) == len(points)
        assert squeezed == sorted(squeezed)
        assert (squeezed[0], squeezed[-1]) == (phase.start, phase.end)
        ended = [k for k in (0, 1) if phase.moves[k] and phase.times(phase.end)[k] > 1 - 1e-9]
        if not ended:
            assert squeezed == points
        found += [[1 - phase.times(squeezed[-2])[k] for k in ended]] if ended else []
    return found


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (AsynchronousSchedule(0.0), [[0.04, 0.04]]),
        (AsynchronousSchedule(0.3), [[0.04], [0.04]]),
        (KnotSchedule(((0.4, 0.0), (0.4, 0.2))), [[0.04, 0.04 * 0.6 / 0.8]]),
        # In logit time the semantics are ahead by 2 throughout: at 0.96 of the textures they have 0.0056 to go.
        (LeadSchedule(2.0), [[0.04, 1 / (1 + math.exp(math.log(24) + 2))]]),
    ],
    ids=str,
)
def test_the_last_step_has_so_much_of_a_streams_own_time_to_go(schedule: Schedule, expected: list[list[float]]) -> None:
    found = _last_times(schedule, 0.04)
    assert [pytest.approx(times, abs=1e-9) for times in expected] == found


def test_a_phase_without_room_for_the_last_step_keeps_its_points() -> None:
    schedule = AsynchronousSchedule(0.02)
    *_, textures = schedule.phases
    points = phase_points(schedule, 204)[-1]
    assert len(points) > 3
    assert leave_last_step(points, textures, 0.04) == points
    assert leave_last_step([1.0, 1.02], textures, 0.01) == [1.0, 1.02], "one step is the last one"
    assert leave_last_step([1.0, 1.01, 1.02], textures, 0.004) == pytest.approx([1.0, 1.016, 1.02])


@pytest.mark.parametrize("schedule", [AsynchronousSchedule(0.3), KnotSchedule(((0.4, 0.0), (0.4, 0.2)))], ids=str)
def test_a_stream_that_stands_still_neither_drifts_nor_diffuses(schedule: Schedule) -> None:
    points: dict[float, Tensor] = {}
    generator = torch.Generator().manual_seed(1)
    start = columns([[0.3, -1.1], [2.0, 0.4]])
    rows = torch.zeros(2, dtype=torch.int64)
    integrate(
        gaussian_velocity,
        start,
        rows,
        schedule,
        PAIR,
        solver="euler_maruyama",
        steps=30,
        normals=lambda: torch.randn(start.shape, generator=generator, dtype=start.dtype),
        on_point=points.__setitem__,
    )
    for (before, x), (after, y) in pairwise(points.items()):
        phase = next(phase for phase in schedule.phases if phase.start <= before < phase.end)
        for stream, moves in enumerate(phase.moves):
            assert torch.equal(x[:, stream], y[:, stream]) != moves, (before, after)


def test_a_solution_changed_on_the_way_is_gone_on_from_with_new_noise() -> None:
    steps, changed_at = 10, 4
    rng = np.random.default_rng(2)
    noises = rng.normal(size=(steps, 3, 2))
    schedule, rows = AsynchronousSchedule(0.0), torch.zeros(3, dtype=torch.int64)
    points: list[tuple[float, Tensor]] = []

    def on_point(progress: float, x: Tensor) -> Tensor | None:
        points.append((progress, x))
        return torch.zeros_like(x) if len(points) == changed_at + 1 else None

    draws = iter(noises)
    options: dict[str, Any] = {"solver": "euler_maruyama", "steps": steps, "last_step": 1 / steps}
    integrate(
        gaussian_velocity,
        columns(noises[0]),
        rows,
        schedule,
        PAIR,
        normals=lambda: columns(next(draws)),
        on_point=on_point,
        **options,
    )
    (start, _), (end, x) = points[changed_at : changed_at + 2]
    v = gaussian_velocity(torch.zeros_like(x), *torch.full((2, 3), start, dtype=x.dtype), rows)
    drawn = math.sqrt(2 * (1 - start) * (end - start)) * columns(noises[changed_at])
    torch.testing.assert_close(x, (1 + start) * (end - start) * v + drawn)


@pytest.mark.parametrize("options", [{"grid": "one-span"}, {"normals": None}])
def test_what_it_cannot_go_by_is_refused(options: dict[str, Any]) -> None:
    noise = torch.zeros(1, 2, 1, 1)
    chosen = {"normals": lambda: noise, "steps": 4} | options
    with pytest.raises(ValueError, match="euler_maruyama"):
        solved(noise, AsynchronousSchedule(0.3), **chosen)

"""The solvers against the reference and the exact solution, and what they promise for any field."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusion_reference import DOPRI5, NOISY_RATIO, NOISY_STEP, error_ratios, load, solve
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfd_cli.diffusion.latents import LatentSpace, Streams
from sfd_cli.diffusion.objective import velocity_of_data
from sfd_cli.diffusion.schedule import AsynchronousSchedule, shifted
from sfd_cli.diffusion.solver import CallCounter, count_steps, extrapolation_weights, integrate
from sfd_cli.diffusion.time_grid import allot, phase_points

SOLVERS = ["euler", "heun", "ab2", "ab3", "dopri5"]
PAIR = LatentSpace(texture=1, semantic=1, grid=1)
FOUR = LatentSpace(texture=2, semantic=2, grid=2)


def _rmse(one: Tensor, other: Tensor) -> float:
    return (one - other).square().mean().sqrt().item()


def test_adaptive_steps_across_the_jumps_hang_on_the_last_bits() -> None:
    """Why one reference sample is reached with one number given only: there a step's length is float32's rounding.

    dopri5's next step is 0.9 / ratio^(1/5) times as long, 10 times at most. One of its error ratios is so small that
    rounding makes it dozens of times what it is, up to where the limit of 10 begins.
    """
    reference = load("sfd")
    expected, exact = reference.sample["dopri5"], reference.sample["exact"]
    counter = CallCounter(reference.model)
    with error_ratios() as single:
        plain = solve(reference, counter, **DOPRI5)
    assert counter.calls == 68
    assert _rmse(plain, exact) == pytest.approx(_rmse(expected, exact), rel=0.3)

    doubled = reference.double()
    with error_ratios() as double:
        solve(doubled, doubled.model, **DOPRI5)
    limit = 0.09**5
    assert double[NOISY_STEP - 1] < limit / 30
    assert single[NOISY_STEP - 1] > 10 * double[NOISY_STEP - 1]
    assert limit < NOISY_RATIO
    rejected = slice(1, NOISY_STEP - 1)
    assert single[rejected] == pytest.approx(double[rejected], rel=1e-3), "where it is large it is no rounding"

    with error_ratios({NOISY_STEP: NOISY_RATIO}):
        given_the_step = solve(reference, reference.model, **DOPRI5)
    torch.testing.assert_close(given_the_step, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "calls", "rmse"),
    [
        ({"solver": "euler", "grid": "one-span", "steps": 20}, 20, 2.3e-2),
        ({"solver": "euler", "steps": 21}, 21, 3.9e-3),
        ({"solver": "heun", "steps": 9}, 18, 1.4e-4),
        ({"solver": "ab2", "steps": 15}, 18, 1.7e-4),
        ({"solver": "ab3", "steps": 15}, 18, 3e-5),
        ({"solver": "dopri5"}, 48, 8e-6),
    ],
)
def test_by_phases_fewer_calls_come_closer_to_the_exact_solution(
    options: dict[str, Any], calls: int, rmse: float
) -> None:
    reference = load("sfd")
    counter = CallCounter(reference.model)
    found = solve(reference, counter, **options)
    assert counter.calls == calls
    assert _rmse(found, reference.sample["exact"]) < rmse


def _decay(x: Tensor, t_texture: Tensor, t_semantic: Tensor, labels: Tensor) -> Tensor:
    """v_s = -2 t_s s and v_z = s - z: one texture and one semantic channel, coupled, with a known solution."""
    z, s = x[:, :1], x[:, 1:]
    return torch.cat((s - z, -2 * t_semantic[:, None, None, None] * s), dim=1)


def _decayed(x: Tensor, schedule: AsynchronousSchedule) -> Tensor:
    """The solution of `_decay` at the end: s = s_0 exp(-t_s^2); z by its convolution, on a fine grid."""
    d, fine = schedule.delta_t, torch.linspace(0, 1, 20_001, dtype=torch.float64)
    semantic = (-(torch.minimum(d + fine, torch.tensor(1.0, dtype=torch.float64)) ** 2)).exp()
    gained = torch.trapezoid(semantic * (fine - 1).exp(), fine)
    return torch.cat((x[:, :1] * math.exp(-1) + x[:, 1:] * gained, x[:, 1:] * math.exp(-1)), dim=1)


def _error(delta_t: float, **options: Any) -> float:
    schedule = AsynchronousSchedule(delta_t)
    x = torch.tensor([[1.0, -2.0], [0.5, 1.5]], dtype=torch.float64)[:, :, None, None]
    labels = torch.zeros(2, dtype=torch.int64)
    return (integrate(_decay, x, labels, schedule, PAIR, **options) - _decayed(x, schedule)).abs().max().item()


@pytest.mark.parametrize("delta_t", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shift", [1.0, 0.5])
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("ab2", 2), ("ab3", 3)])
def test_by_phases_a_solver_keeps_its_order(solver: str, order: int, shift: float, delta_t: float) -> None:
    errors = [_error(delta_t, solver=solver, steps=steps, shift=shift) for steps in (208, 416)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2)


def test_across_a_jump_the_one_span_grid_loses_it() -> None:
    by_phases, one_span = (_error(0.3, solver="heun", steps=50, grid=grid) for grid in ("phases", "one-span"))
    assert one_span > 5 * by_phases


@pytest.mark.parametrize("delta_t", [0.0, 0.3, 1.0])
def test_dopri5_keeps_its_tolerance(delta_t: float) -> None:
    assert _error(delta_t, solver="dopri5", rtol=1e-7, atol=1e-9) < 1e-6


def _careless(x: Tensor, t_texture: Tensor, t_semantic: Tensor, labels: Tensor) -> Tensor:
    """A field that says NaN of a stream that is all noise or all data at the ends of the other's times."""
    velocity = torch.cat((x[:, 2:].sin(), x[:, :2].cos()), dim=1)
    velocity[:, :2] = torch.where(t_texture[:, None, None, None] <= 0, torch.nan, velocity[:, :2])
    velocity[:, 2:] = torch.where(t_semantic[:, None, None, None] >= 1, torch.nan, velocity[:, 2:])
    return velocity


@pytest.mark.parametrize("solver", SOLVERS)
@settings(deadline=None, max_examples=15)
@given(delta_t=st.floats(0, 1), steps=st.integers(1, 12), shift=st.floats(0.2, 4))
def test_a_frozen_stream_keeps_every_bit(solver: Any, delta_t: float, steps: int, shift: float) -> None:
    schedule = AsynchronousSchedule(delta_t)
    noise = torch.randn((2, 4, 2, 2), generator=torch.Generator().manual_seed(0))
    points: list[tuple[float, Tensor]] = []
    integrate(
        lambda x, t_texture, t_semantic, labels: torch.cat((x[:, 2:].sin(), x[:, :2].cos()), dim=1),
        noise,
        torch.zeros(2, dtype=torch.int64),
        schedule,
        FOUR,
        solver=solver,
        steps=steps,
        shift=shift,
        on_point=lambda progress, x: points.append((progress, x.clone())),
    )
    finished = next(x for progress, x in points if progress >= 1.0)
    for progress, x in points:
        streams = FOUR.views(x)
        if progress <= delta_t:
            assert torch.equal(streams.texture, FOUR.views(noise).texture)
        if progress >= 1.0:
            assert torch.equal(streams.semantic, FOUR.views(finished).semantic)
    assert points[0][0] == 0
    assert points[-1][0] == schedule.end
    assert [progress for progress, _ in points] == sorted(progress for progress, _ in points)


@pytest.mark.parametrize("solver", ["euler", "heun", "ab2", "ab3"])
def test_what_the_field_says_of_a_frozen_stream_does_not_matter(solver: Any) -> None:
    noise = torch.randn((2, 4, 2, 2), generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(2, dtype=torch.int64)
    sequential = AsynchronousSchedule(1.0)
    reached: dict[float, Tensor] = {}
    integrate(
        _careless,
        noise,
        labels,
        sequential,
        FOUR,
        solver=solver,
        steps=8,
        on_point=lambda progress, x: reached.__setitem__(progress, x),
    )
    inside = [x for progress, x in reached.items() if progress < 1.0]
    assert len(inside) == 4
    assert all(bool(x.isfinite().all()) for x in inside)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("delta_t", [0.0, 1e-9, 0.5, 1 - 1e-9, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_any_offset_and_any_number_of_steps_reach_the_end(solver: Any, delta_t: float, steps: int) -> None:
    """With the field `u = constant` every solver is exact, so noise + u must come out."""
    noise = torch.randn((2, 3, 2, 2), generator=torch.Generator().manual_seed(0))
    velocity = torch.randn((2, 3, 2, 2), generator=torch.Generator().manual_seed(1))
    found = integrate(
        lambda x, t_texture, t_semantic, labels: velocity,
        noise,
        torch.zeros(2, dtype=torch.int64),
        AsynchronousSchedule(delta_t),
        LatentSpace(2, 1, 2),
        solver=solver,
        steps=steps,
    )
    torch.testing.assert_close(found, noise + velocity, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("solver", "calls"), [("euler", 12), ("heun", 24), ("ab2", 15), ("ab3", 15)])
def test_network_calls_are_as_many_as_documented(solver: Any, calls: int) -> None:
    counter = CallCounter(_decay)
    noise = torch.randn((1, 2, 1, 1))
    rows, schedule = torch.zeros(1, dtype=torch.int64), AsynchronousSchedule(0.3)
    integrate(counter, noise, rows, schedule, PAIR, solver=solver, steps=12)
    assert counter.calls == calls


def test_without_semantic_channels_it_is_ordinary_diffusion() -> None:
    x = torch.ones((1, 2, 1, 1), dtype=torch.float64)
    labels = torch.zeros(1, dtype=torch.int64)
    found = integrate(
        lambda x, *_: -x, x, labels, AsynchronousSchedule(0.0), LatentSpace(2, 0, 1), solver="heun", steps=200
    )
    torch.testing.assert_close(found, x * math.exp(-1), atol=1e-5, rtol=0)


@settings(deadline=None)
@given(st.floats(0, 1), st.integers(1, 60), st.floats(0.1, 10))
def test_points_end_on_the_breakpoints_and_ascend(delta_t: float, steps: int, shift: float) -> None:
    schedule = AsynchronousSchedule(delta_t)
    grids = phase_points(schedule, steps, shift)
    assert [(grid[0], grid[-1]) for grid in grids] == [(phase.start, phase.end) for phase in schedule.phases]
    assert sum(len(grid) - 1 for grid in grids) == max(steps, len(grids))
    for grid in grids:
        assert all(before <= after for before, after in pairwise(grid))


def _visited(**options: Any) -> tuple[Tensor, list[float]]:
    """The latent at the end, and the points on the way."""
    points: list[float] = []
    x = torch.tensor([[1.0, -2.0]], dtype=torch.float64)[:, :, None, None]
    schedule, rows = AsynchronousSchedule(0.3), torch.zeros(1, dtype=torch.int64)
    end = integrate(_decay, x, rows, schedule, PAIR, on_point=lambda progress, x: points.append(progress), **options)
    return end, points


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_the_points_visited_are_those_of_the_grid_at_its_shift(shift: float) -> None:
    by_phases = phase_points(AsynchronousSchedule(0.3), 9, shift)
    inner = [point for grid in by_phases for point in grid[1:]]
    assert _visited(solver="euler", steps=9, shift=shift)[1] == [0.0, *inner]
    one_span = [1.3 * shift * i / 9 / (1 + (shift - 1) * i / 9) for i in range(10)]
    assert _visited(solver="euler", steps=9, shift=shift, grid="one-span")[1] == pytest.approx(one_span, abs=1e-12)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_field_is_asked_at_times_of_the_latents_own_dtype_and_device(device: str) -> None:
    x, rows = torch.zeros((3, 2, 1, 1), dtype=torch.float64, device=device), torch.zeros(3, device=device)
    asked: list[Tensor] = []

    def field(x: Tensor, t_texture: Tensor, t_semantic: Tensor, labels: Tensor) -> Tensor:
        asked.extend((t_texture, t_semantic))
        return x

    integrate(field, x, rows, AsynchronousSchedule(0.3), PAIR, solver="euler", steps=3)
    assert {(t.shape, t.dtype, t.device) for t in asked} == {((3,), torch.float64, x.device)}


def test_what_is_left_out_is_as_documented() -> None:
    for few, every in (
        ({}, {"solver": "ab3", "steps": 24, "grid": "phases", "shift": 1.0}),
        ({"solver": "dopri5"}, {"solver": "dopri5", "rtol": 1e-3, "atol": 1e-6}),
    ):
        (short, visited), (long, expected) = _visited(**few), _visited(**every)
        assert torch.equal(short, long)
        assert visited == expected
    schedule = AsynchronousSchedule(0.3)
    assert phase_points(schedule, 12) == phase_points(schedule, 12, 1.0)


def test_the_adaptive_solver_crosses_the_jumps_in_one_span() -> None:
    assert _error(0.3, solver="dopri5", grid="one-span", rtol=1e-8, atol=1e-10) < 1e-5


def test_the_shift_belongs_to_the_whole_schedule() -> None:
    """Where a phase's share of steps is whole, points by phases are those of the one-span grid."""
    schedule = AsynchronousSchedule(1.0)
    by_phases = [point for grid in phase_points(schedule, 30, 0.5) for point in grid]
    halfway = shifted(0.5, 1 / 0.5)
    assert halfway == pytest.approx(2 / 3)
    one_span = [2 * shifted(i / 30, 0.5) for i in range(31)]
    assert sorted(set(by_phases)) == pytest.approx(one_span)


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0.1, 10))
def test_the_shift_keeps_the_ends_and_has_the_documented_inverse(u: float, k: float) -> None:
    assert shifted(0.0, k) == 0
    assert shifted(1.0, k) == pytest.approx(1)
    assert shifted(shifted(u, k), 1 / k) == pytest.approx(u, abs=1e-9)


@settings(deadline=None)
@given(st.floats(0.1, 1), st.lists(st.floats(0.1, 1), min_size=1, max_size=2))
def test_slopes_on_a_polynomial_extrapolate_to_its_integral(step: float, gaps: list[float]) -> None:
    ages = [sum(gaps[: count + 1]) for count in range(len(gaps))]
    weights = extrapolation_weights(step, ages)
    for degree in range(len(ages) + 1):
        slopes = [(-age) ** degree for age in (0.0, *ages)]
        mean = sum(weight * slope for weight, slope in zip(weights, slopes, strict=True))
        assert mean == pytest.approx(step**degree / (degree + 1), abs=1e-9)


@settings(deadline=None)
@given(st.integers(1, 100), st.lists(st.floats(1e-9, 1), min_size=1, max_size=3))
def test_steps_are_allotted_whole_with_one_for_each_phase(total: int, shares: list[float]) -> None:
    counts = allot(total, shares)
    assert sum(counts) == max(total, len(shares))
    assert min(counts) >= 1


@pytest.mark.parametrize("options", [{"steps": 0}, {"shift": 0.0}])
def test_impossible_grids_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="steps"):
        integrate(_decay, torch.zeros(1, 2, 1, 1), torch.zeros(1), AsynchronousSchedule(0.3), PAIR, **options)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 12))
def test_without_an_offset_euler_is_the_ordinary_loop_over_all_channels(steps: int) -> None:
    torch.manual_seed(0)
    noise, labels = torch.randn(2, 6, 3, 3, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)

    def field(x: Tensor, t_texture: Tensor, t_semantic: Tensor, labels: Tensor) -> Tensor:
        return torch.sin(3 * x) + t_texture[:, None, None, None] - x * t_semantic[:, None, None, None]

    x = noise
    for step in range(steps):
        t = torch.full((2,), step / steps, dtype=torch.float64)
        x = x + field(x, t, t, labels) / steps
    found = integrate(
        field, noise, labels, AsynchronousSchedule(0.0), LatentSpace(4, 2, 3), solver="euler", steps=steps
    )
    torch.testing.assert_close(found, x)


def _arrived(solver: str, delta_t: float, steps: int) -> tuple[Tensor, Tensor]:
    """Clean latents, and where the flow of a network that knows them ends."""
    data, noise = torch.randn((2, 3, 4, 2, 2), generator=torch.Generator().manual_seed(0)).unbind()

    def velocity(x: Tensor, t_texture: Tensor, t_semantic: Tensor, labels: Tensor) -> Tensor:
        return velocity_of_data(data, x, Streams(t_texture, t_semantic), FOUR)

    rows = torch.zeros(3, dtype=torch.int64)
    return data, integrate(velocity, noise, rows, AsynchronousSchedule(delta_t), FOUR, solver=solver, steps=steps)


@pytest.mark.parametrize("solver", ["euler", "ab2", "ab3"])
@pytest.mark.parametrize("delta_t", [0.0, 0.3, 1.0])
def test_a_network_that_knows_the_data_arrives_there(solver: str, delta_t: float) -> None:
    data, found = _arrived(solver, delta_t, steps=12)
    torch.testing.assert_close(found, data, rtol=0, atol=1e-5)


def test_slopes_beyond_the_least_time_left_end_near_the_data_and_not_at_it() -> None:
    data, found = _arrived("dopri5", 0.0, steps=1)
    assert 0.001 < _rmse(found, data) < 0.05


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("delta_t", "options"),
    [(0.0, {}), (0.3, {"steps": 7}), (0.3, {"steps": 7, "grid": "one-span"}), (1.0, {"steps": 1})],
)
def test_the_number_of_steps_is_known_before(solver: Any, delta_t: float, options: dict[str, Any]) -> None:
    schedule, points = AsynchronousSchedule(delta_t), []
    x, rows = torch.zeros(1, 2, 1, 1), torch.zeros(1, dtype=torch.int64)
    integrate(
        lambda x, *_: x, x, rows, schedule, PAIR, solver=solver, on_point=lambda t, _: points.append(t), **options
    )
    assert count_steps(schedule, solver=solver, **options) == len(points) - 1


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("grid", ["phases", "one-span"])
def test_another_solution_from_outside_takes_its_place_and_what_came_before_is_forgotten(
    solver: Any, grid: Any
) -> None:
    """In a field that grows with x, zero stays zero; a slope remembered from before would move it."""
    schedule, reached = AsynchronousSchedule(0.5), {}
    counter = CallCounter(lambda x, *_: x)

    def on_point(progress: float, x: Tensor) -> Tensor | None:
        reached[progress] = x.clone()
        return torch.zeros_like(x) if progress == changed else None

    x, rows = torch.full((1, 2, 1, 1), 3.0), torch.zeros(1, dtype=torch.int64)
    options = {"solver": solver, "steps": 12, "grid": grid}
    points: list[float] = []
    plain = integrate(counter, x, rows, schedule, PAIR, on_point=lambda t, _: points.append(t), **options)
    calls = counter.calls
    for changed in points:
        reached.clear()
        end = integrate(counter, x, rows, schedule, PAIR, on_point=on_point, **options)
        assert torch.equal(end, torch.zeros_like(end)), changed
        assert list(reached) == points, "and the points are the same"
        assert bool((reached[changed] != 0).all())
    assert bool((plain > 3).all())
    counter.calls = 0
    integrate(counter, x, rows, schedule, PAIR, on_point=lambda _, x: x, **options)
    assert counter.calls == calls, "the same tensor given back costs nothing"


def test_a_frozen_stream_that_is_changed_keeps_the_change() -> None:
    x, rows = torch.ones(1, 2, 1, 1), torch.zeros(1, dtype=torch.int64)
    seen: list[tuple[float, float]] = []

    def on_point(progress: float, x: Tensor) -> Tensor | None:
        seen.append((progress, PAIR.views(x).texture.item()))
        return x + torch.tensor([[[[5.0]], [[0.0]]]]) if progress == 0.25 else None

    schedule = AsynchronousSchedule(0.5)
    integrate(lambda x, *_: torch.ones_like(x), x, rows, schedule, PAIR, solver="euler", steps=6, on_point=on_point)
    assert seen == [(0.0, 1.0), (0.25, 1.0), (0.5, 6.0), (0.75, 6.25), (1.0, 6.5), (1.25, 6.75), (1.5, 7.0)]

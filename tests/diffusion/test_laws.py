"""Laws beside the paper's: paths of leads and of straight lines."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusion_laws import LAWS, by_law
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refusal

from sfd_cli.config import DiT, Sample, validate_settings
from sfd_cli.diffusion.latents import LatentSpace
from sfd_cli.diffusion.laws import CurveSchedule, KnotSchedule, LeadSchedule
from sfd_cli.diffusion.schedule import AsynchronousSchedule, Schedule, progress_of, rates_of, schedule_of
from sfd_cli.diffusion.solver import integrate


def grid(schedule: Schedule, count: int = 401) -> torch.Tensor:
    return torch.linspace(0, schedule.end, count, dtype=torch.float64)


@by_law
def test_a_path_runs_from_noise_to_data_and_never_back(schedule: Schedule) -> None:
    times = schedule.times(grid(schedule))
    for time in times:
        assert time[0] == 0
        assert time[-1] == pytest.approx(1)
        assert (time.diff() >= 0).all()


@by_law
def test_phases_say_what_training_sees_and_their_rates_are_its_slopes(schedule: Schedule) -> None:
    for phase in schedule.phases:
        for part in (0.01, 0.3, 0.77, 0.99):
            progress = phase.start + part * (phase.end - phase.start)
            at = torch.tensor([progress], dtype=torch.float64)
            assert phase.times(progress) == pytest.approx([time.item() for time in schedule.times(at)], abs=1e-12)
            slopes = [
                (schedule.times(at + 1e-6)[stream] - schedule.times(at - 1e-6)[stream]).item() / 2e-6
                for stream in (0, 1)
            ]
            assert phase.rates(progress) == pytest.approx(slopes, abs=1e-6)
            assert [rate.item() for rate in rates_of(schedule, at)] == pytest.approx(slopes, abs=1e-6)
            assert phase.moves == tuple(slope > 0 for slope in slopes)


@by_law
def test_past_its_ends_a_phase_goes_on_along_its_tangents(schedule: Schedule) -> None:
    for phase in schedule.phases:
        for end, past in ((phase.start, phase.start - 0.6), (phase.end, phase.end + 0.6)):
            for stream in (0, 1):
                straight = phase.times(end)[stream] + (past - end) * phase.rates(end)[stream]
                assert phase.times(past)[stream] == pytest.approx(straight, abs=1e-9)
            assert phase.rates(past) == pytest.approx(phase.rates(end), abs=1e-9)


@by_law
@pytest.mark.parametrize("stream", ["texture", "semantic"])
def test_the_progress_of_a_time_is_where_the_stream_has_it(schedule: Schedule, stream: str) -> None:
    times = torch.tensor([1e-6, 0.01, 0.3, 0.5, 0.97, 0.99999])
    progress = progress_of(schedule, times, torch.full((len(times),), stream == "texture"))
    assert progress.dtype == torch.float32
    found = getattr(schedule.times(progress.double()), stream)
    torch.testing.assert_close(found.float(), times, rtol=0, atol=3e-7)


def test_a_lead_is_the_difference_of_logits_half_for_either_stream() -> None:
    progress = grid(LAWS["lead"])[1:-1]
    texture, semantic = LeadSchedule(1.3).times(progress)
    torch.testing.assert_close(semantic.logit() - progress.logit(), torch.full_like(progress, 0.65))
    torch.testing.assert_close(progress.logit() - texture.logit(), torch.full_like(progress, 0.65))


def test_the_lead_of_a_curve_is_a_hyperbolic_tangent_of_the_logit() -> None:
    progress = grid(LAWS["curve"])[1:-1]
    texture, semantic = CurveSchedule(0.5, 3.0).times(progress)
    expected = 0.5 + 3.0 * (progress.logit() / 2).tanh()
    torch.testing.assert_close(semantic.logit() - texture.logit(), expected)


def test_synchronous_denoising_of_larger_semantics_is_a_lead() -> None:
    """A latent k times as large, synchronously, has the signal-to-noise ratios of a constant lead of ln k."""
    progress, k = grid(LAWS["lead"])[1:-1], 2.5
    texture, semantic = LeadSchedule(math.log(k)).times(progress)
    torch.testing.assert_close(semantic / (1 - semantic), k * texture / (1 - texture))


@settings(deadline=None)
@given(st.floats(0.01, 0.99), st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_an_offset_is_a_path_of_two_knots(delta_t: float, parts: list[float]) -> None:
    knots, offset = KnotSchedule(((delta_t, 0.0), (1.0, 1 - delta_t))), AsynchronousSchedule(delta_t)
    assert knots.end == pytest.approx(offset.end)
    progress = torch.tensor(parts, dtype=torch.float64) * offset.end
    for ours, theirs in zip(knots.times(progress), offset.times(progress), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert [phase.moves for phase in knots.phases] == [phase.moves for phase in offset.phases]
    ends = [[phase.end for phase in schedule.phases] for schedule in (knots, offset)]
    assert ends[0] == pytest.approx(ends[1])


def test_without_a_lead_or_knots_both_streams_are_at_t() -> None:
    for schedule in (LeadSchedule(0.0), CurveSchedule(0.0, 0.0), KnotSchedule(())):
        progress = grid(schedule)
        for time in schedule.times(progress):
            torch.testing.assert_close(time, progress, rtol=0, atol=1e-15)


@by_law
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("ab2", 2), ("ab3", 3)])
def test_solvers_keep_their_order_along_every_law(schedule: Schedule, solver: str, order: int) -> None:
    """The velocity (2 - x) of either stream in its own time has the solution 2 - 2 exp(-t) from x = 0."""
    exact = 2 - 2 * math.exp(-1)

    def error(steps: int) -> float:
        start, rows = torch.zeros(1, 2, 1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
        found = integrate(lambda x, *_: 2 - x, start, rows, schedule, LatentSpace(1, 1, 1), solver=solver, steps=steps)
        return float((found - exact).abs().max())

    coarse, fine = (error(steps) for steps in (96, 192))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.35)


@by_law
def test_the_adaptive_solver_crosses_every_law(schedule: Schedule) -> None:
    start, rows = torch.zeros(1, 2, 1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    found = integrate(
        lambda x, *_: 2 - x, start, rows, schedule, LatentSpace(1, 1, 1), solver="dopri5", rtol=1e-8, atol=1e-10
    )
    torch.testing.assert_close(found, torch.full_like(found, 2 - 2 * math.exp(-1)), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "schedule"),
    [
        ({"schedule": "lead", "lead": 1.3}, LeadSchedule(1.3)),
        ({"schedule": "curve", "lead": 0.5, "lead_slope": -3.0}, CurveSchedule(0.5, -3.0)),
        ({"schedule": "knots", "knots": [0.4, 0.1, 0.5, 0.6]}, KnotSchedule(((0.4, 0.1), (0.5, 0.6)))),
    ],
)
def test_settings_choose_a_law_and_its_numbers(values: dict[str, Any], schedule: Schedule) -> None:
    for section in (DiT(**values), Sample(**values)):
        assert schedule_of(section) == schedule


@pytest.mark.parametrize(
    ("values", "key", "words"),
    [
        ({"lead": 1.0}, "lead", "not read by offset"),
        ({"schedule": "lead", "lead_slope": 1.0}, "lead_slope", "not read by lead"),
        ({"schedule": "knots", "knots": [0.5]}, "knots", "no pairs"),
        ({"schedule": "knots", "knots": [0.5, 0.2, 0.4, 0.6]}, "knots", "goes back"),
        ({"schedule": "knots", "knots": [0.5, 1.2]}, "knots", "goes back"),
        ({"schedule": "knots", "knots": [0.5, 0.5, 0.5, 0.5]}, "knots", "stands still"),
        ({"schedule": "curve", "lead_slope": 4.0}, "lead_slope", "less than 4"),
        ({"schedule": "lead", "lead": math.inf}, "lead", "finite"),
        ({"schedule": "led"}, "schedule", "no schedule law"),
        ({"schedule": "lead", "lead": 1.0, "leader_noise": 0.2}, "leader_noise", "none do"),
        ({"schedule": "lead", "lead": 1.0, "time_embedding": "single"}, "time_embedding", "one time"),
    ],
)
def test_what_no_law_reads_or_is_no_path_is_refused(values: dict[str, Any], key: str, words: str) -> None:
    with refusal(f"dit.{key}", words):
        validate_settings({"dit": values}, "params.yaml")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: LeadSchedule(math.nan), "finite"),
        (lambda: CurveSchedule(0.0, 4.0), "between -4 and 4"),
        (lambda: KnotSchedule(((0.5, 0.2), (0.4, 0.6))), "goes back"),
        (lambda: KnotSchedule(((0.0, 0.0),)), "twice"),
    ],
)
def test_a_path_that_goes_back_is_refused(wrong: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        wrong()


def test_samples_follow_the_law_of_training_unless_they_are_told_one() -> None:
    trained = {"schedule": "lead", "lead": 0.7}
    for values, expected in (
        ({}, trained),
        ({"delta_t": 0.2}, {"schedule": "offset", "delta_t": 0.2}),
        ({"schedule": "lead", "lead": 2.0}, {"schedule": "lead", "lead": 2.0}),
        ({"schedule": "lead"}, trained),
        ({"schedule": "offset"}, {"schedule": "offset", "delta_t": 0.3}),
        ({"schedule": "curve", "lead": 1.0}, {"schedule": "curve", "lead": 1.0, "lead_slope": 0.0}),
    ):
        sample = Sample(**values).with_law(trained)
        assert {key: getattr(sample, key) for key in expected} == expected
        assert sample.with_law(None) == sample
    assert Sample().with_law(None).delta_t == 0.3

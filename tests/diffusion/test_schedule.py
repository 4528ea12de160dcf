"""The asynchronous schedule: times, rates, phases."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfd_cli.diffusion.schedule import AsynchronousSchedule

offsets = st.floats(0, 1)
fractions = st.floats(0, 1)


@settings(deadline=None)
@given(offsets)
def test_both_streams_start_as_noise_and_end_as_data(delta_t: float) -> None:
    schedule = AsynchronousSchedule(delta_t)
    assert schedule.times(0.0) == (0.0, 0.0)
    assert schedule.times(schedule.end) == pytest.approx((1.0, 1.0), abs=1e-12)


@settings(deadline=None)
@given(offsets, fractions)
def test_semantics_are_never_behind_textures_and_lead_by_no_more_than_the_offset(delta_t: float, u: float) -> None:
    schedule = AsynchronousSchedule(delta_t)
    times = schedule.times(u * schedule.end)
    assert 0 <= times.texture <= times.semantic <= 1
    assert times.semantic - times.texture <= delta_t + 1e-12


@settings(deadline=None)
@given(offsets, fractions, fractions)
def test_times_never_go_back(delta_t: float, u: float, v: float) -> None:
    schedule = AsynchronousSchedule(delta_t)
    early, late = (schedule.times(part * schedule.end) for part in sorted((u, v)))
    assert early.texture <= late.texture
    assert early.semantic <= late.semantic


@settings(deadline=None)
@given(offsets, st.lists(fractions, min_size=1, max_size=8))
def test_a_tensor_of_progress_gives_what_single_numbers_give(delta_t: float, parts: list[float]) -> None:
    schedule = AsynchronousSchedule(delta_t)
    progress = torch.tensor([part * schedule.end for part in parts], dtype=torch.float64)
    times, rates = schedule.times(progress), schedule.rates(progress)
    for index, value in enumerate(progress.tolist()):
        assert (times.texture[index].item(), times.semantic[index].item()) == schedule.times(value)
        assert (rates.texture[index].item(), rates.semantic[index].item()) == schedule.rates(value)


@settings(deadline=None)
@given(offsets)
def test_phases_tile_the_whole_schedule_without_an_empty_one(delta_t: float) -> None:
    schedule = AsynchronousSchedule(delta_t)
    phases = schedule.phases
    assert phases[0].start == 0
    assert phases[-1].end == schedule.end
    assert all(phase.start < phase.end for phase in phases)
    assert all(before.end == after.start for before, after in pairwise(phases))
    assert schedule.breakpoints == tuple(phase.start for phase in phases[1:])


@settings(deadline=None)
@given(offsets, fractions)
def test_a_phase_says_what_the_schedule_says_inside_it(delta_t: float, u: float) -> None:
    schedule = AsynchronousSchedule(delta_t)
    for phase in schedule.phases:
        progress = phase.start + u * (phase.end - phase.start)
        assert phase.times(progress) == pytest.approx(schedule.times(progress), abs=1e-12)
        if phase.start < progress < phase.end:
            assert phase.rates == schedule.rates(progress)
            assert schedule.phase_at(progress) == phase


@pytest.mark.parametrize(
    ("delta_t", "rates", "breakpoints"),
    [
        (0.0, [(1, 1)], ()),
        (0.3, [(0, 1), (1, 1), (1, 0)], (0.3, 1.0)),
        (1.0, [(0, 1), (1, 0)], (1.0,)),
    ],
)
def test_the_three_phases_and_those_that_vanish(
    delta_t: float, rates: list[tuple[int, int]], breakpoints: tuple[float, ...]
) -> None:
    schedule = AsynchronousSchedule(delta_t)
    assert [phase.rates for phase in schedule.phases] == rates
    assert schedule.breakpoints == breakpoints


def test_both_streams_move_at_the_breakpoints() -> None:
    schedule = AsynchronousSchedule(0.3)
    assert schedule.rates(0.3) == (1, 1)
    assert schedule.rates(1.0) == (1, 1)
    assert schedule.rates(0.299) == (0, 1)
    assert schedule.rates(1.001) == (1, 0)


def test_past_the_end_a_phase_goes_on_by_its_own_law() -> None:
    synchronous = AsynchronousSchedule(0.0)
    assert synchronous.rates(1.2) == (1, 1)
    assert synchronous.phase_at(1.2).times(1.2) == (1.2, 1.2)
    first = AsynchronousSchedule(0.3).phases[0]
    assert first.times(0.5) == (0, 0.5)


@pytest.mark.parametrize("delta_t", [-0.1, 1.1, float("nan")])
def test_an_impossible_offset_is_refused(delta_t: float) -> None:
    with pytest.raises(ValueError, match="delta_t"):
        AsynchronousSchedule(delta_t)


@settings(deadline=None)
@given(fractions)
def test_without_an_offset_it_is_ordinary_synchronous_diffusion(u: float) -> None:
    schedule = AsynchronousSchedule(0.0)
    assert schedule.end == 1
    assert schedule.times(u) == (u, u)
    assert schedule.rates(u) == (1, 1)
    assert len(schedule.phases) == 1

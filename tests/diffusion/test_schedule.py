"""The asynchronous schedule: times, rates, phases."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfd_cli.config import DiT, Sample
from sfd_cli.diffusion.latents import Streams
from sfd_cli.diffusion.schedule import AsynchronousSchedule, Phase, Schedule, linear_phase, schedule_of, whole_schedule

offsets = st.floats(0, 1)
fractions = st.floats(0, 1)


def times_at(schedule: Schedule, progress: float) -> Streams[float]:
    """What the law's times, as training asks for them, are at one progress."""
    texture, semantic = schedule.times(torch.tensor(progress, dtype=torch.float64))
    return Streams(texture.item(), semantic.item())


@settings(deadline=None)
@given(offsets)
def test_both_streams_start_as_noise_and_end_as_data(delta_t: float) -> None:
    schedule = AsynchronousSchedule(delta_t)
    assert times_at(schedule, 0.0) == (0.0, 0.0)
    assert times_at(schedule, schedule.end) == pytest.approx((1.0, 1.0), abs=1e-12)


@settings(deadline=None)
@given(offsets, fractions)
def test_semantics_are_never_behind_textures_and_lead_by_no_more_than_the_offset(delta_t: float, u: float) -> None:
    schedule = AsynchronousSchedule(delta_t)
    times = times_at(schedule, u * schedule.end)
    assert 0 <= times.texture <= times.semantic <= 1
    assert times.semantic - times.texture <= delta_t + 1e-12


@settings(deadline=None)
@given(offsets, fractions, fractions)
def test_times_never_go_back(delta_t: float, u: float, v: float) -> None:
    schedule = AsynchronousSchedule(delta_t)
    early, late = (times_at(schedule, part * schedule.end) for part in sorted((u, v)))
    assert early.texture <= late.texture
    assert early.semantic <= late.semantic


@settings(deadline=None)
@given(offsets, st.lists(fractions, min_size=1, max_size=8))
def test_the_times_are_those_of_the_paper(delta_t: float, parts: list[float]) -> None:
    schedule = AsynchronousSchedule(delta_t)
    progress = torch.tensor([part * schedule.end for part in parts], dtype=torch.float64)
    times = schedule.times(progress)
    for index, value in enumerate(progress.tolist()):
        assert times.texture[index] == max(value - delta_t, 0)
        assert times.semantic[index] == min(value, 1)


@settings(deadline=None)
@given(offsets)
def test_phases_tile_the_whole_schedule_without_an_empty_one(delta_t: float) -> None:
    schedule = AsynchronousSchedule(delta_t)
    phases = schedule.phases
    assert phases[0].start == 0
    assert phases[-1].end == schedule.end
    assert all(phase.start < phase.end for phase in phases)
    assert all(before.end == after.start for before, after in pairwise(phases))


@settings(deadline=None)
@given(offsets, fractions)
def test_a_phase_says_what_the_schedule_says_inside_it(delta_t: float, u: float) -> None:
    schedule = AsynchronousSchedule(delta_t)
    for phase in schedule.phases:
        progress = phase.start + u * (phase.end - phase.start)
        assert phase.times(progress) == pytest.approx(times_at(schedule, progress), abs=1e-12)
        assert phase.moves == tuple(rate > 0 for rate in phase.rates(progress))
        if phase.start < progress < phase.end:
            assert phase.rates(progress) == whole_schedule(schedule).rates(progress)
            assert phase.times(progress) == whole_schedule(schedule).times(progress)


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
    assert [phase.rates(phase.start) for phase in schedule.phases] == rates
    assert tuple(phase.start for phase in schedule.phases[1:]) == breakpoints


def test_both_streams_move_at_the_breakpoints() -> None:
    schedule = whole_schedule(AsynchronousSchedule(0.3))
    assert schedule.rates(0.3) == (1, 1)
    assert schedule.rates(1.0) == (1, 1)
    assert schedule.rates(0.299) == (0, 1)
    assert schedule.rates(1.001) == (1, 0)


@pytest.mark.parametrize("delta_t", [0.0, 0.3, 1.0])
def test_times_stay_between_noise_and_data_whatever_the_progress(delta_t: float) -> None:
    schedule = AsynchronousSchedule(delta_t)
    times = schedule.times(torch.tensor([-0.5, schedule.end + 0.5, schedule.end + 3]))
    assert times.texture.tolist() == times.semantic.tolist() == [0, 1, 1]


@pytest.mark.parametrize(("delta_t", "last"), [(0.0, (1, 1)), (0.3, (1, 0)), (1.0, (1, 0))])
def test_past_the_end_the_whole_schedule_keeps_the_rates_of_the_end(delta_t: float, last: tuple[int, int]) -> None:
    whole = whole_schedule(AsynchronousSchedule(delta_t))
    assert (whole.start, whole.end) == (0, 1 + delta_t)
    assert whole.rates(whole.end) == whole.rates(whole.end + 0.5) == last
    assert whole.rates(-0.5) == whole.rates(0.0)
    assert whole.times(-0.5) == AsynchronousSchedule(delta_t).phases[0].times(-0.5)


@dataclass(frozen=True)
class TexturesFirst(AsynchronousSchedule):
    """Textures up to T = 1, then semantics."""

    @property
    def phases(self) -> tuple[Phase, ...]:
        first = linear_phase(0.0, 1.0, Streams(1.0, 0.0), Streams(0.0, 0.0))
        return first, linear_phase(1.0, 2.0, Streams(0.0, 1.0), Streams(1.0, -1.0))


def test_at_a_breakpoint_either_stream_may_be_the_one_that_stops() -> None:
    whole = whole_schedule(TexturesFirst(1.0))
    assert [whole.rates(progress) for progress in (0.5, 1.0, 1.5)] == [(1, 0), (1, 1), (0, 1)]
    assert [whole.times(progress) for progress in (0.5, 1.0, 1.5)] == [(0.5, 0), (1, 0), (1, 0.5)]


def test_past_the_end_a_phase_goes_on_by_its_own_law() -> None:
    synchronous = whole_schedule(AsynchronousSchedule(0.0))
    assert synchronous.rates(1.2) == (1, 1)
    assert synchronous.times(1.2) == (1.2, 1.2)
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
    assert times_at(schedule, u) == (u, u)
    assert schedule.phases[0].rates(u) == (1, 1)
    assert len(schedule.phases) == 1


def test_the_offset_of_a_section_is_the_laws() -> None:
    for section in (DiT(delta_t=0.2), Sample(delta_t=0.2)):
        assert schedule_of(section) == AsynchronousSchedule(0.2)

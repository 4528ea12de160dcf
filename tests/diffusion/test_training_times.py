"""Times to train at, and the weights of both streams' errors there."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from diffusion_laws import LAWS, by_law
from torch import Tensor

from sfd_cli.diffusion.latents import Streams
from sfd_cli.diffusion.laws import LeadSchedule
from sfd_cli.diffusion.schedule import AsynchronousSchedule, Schedule
from sfd_cli.diffusion.training_times import Draws, ShiftedLead, TrainingTimes

COUNT = 200_000


def drawn(times: TrainingTimes, count: int = COUNT, seed: int = 0) -> Draws:
    generator = torch.Generator().manual_seed(seed)
    return {"level": times.draw_level(count, generator)} | times.draw_further(count, generator)


def expectation(function: Callable[[Tensor], Tensor], mean: float) -> float:
    """Of `function` of a logit-normal time, by quadrature over the normal."""
    z = torch.linspace(-9, 9, 40_001, dtype=torch.float64)
    density = (-z.square() / 2).exp() / math.sqrt(2 * math.pi)
    return torch.trapezoid(function((z + mean).sigmoid()) * density, z).item()


@pytest.mark.parametrize("delta_t", [0.0, 0.3, 1.0])
def test_the_papers_progress_is_logit_normal_over_the_whole_schedule(delta_t: float) -> None:
    times = TrainingTimes(AsynchronousSchedule(delta_t))
    draws = drawn(times, 20_000)
    assert draws.keys() == {"level"}
    level = draws["level"]
    assert level.dtype == torch.float32
    assert 0 < level.min() < level.max() < 1
    assert abs(level.logit().mean()) < 0.03
    assert abs(level.logit().std() - 1) < 0.03
    found, weights = times.of(draws)
    assert weights is None
    torch.testing.assert_close(found.semantic, (level * (1 + delta_t)).clamp(max=1))
    torch.testing.assert_close(found.texture, (level * (1 + delta_t) - delta_t).clamp(min=0))


@pytest.mark.parametrize("mean", [-0.8, 0.5])
def test_the_mean_of_times_is_that_of_their_logits(mean: float) -> None:
    schedule = AsynchronousSchedule(0.3)
    shifted, plain = (drawn(TrainingTimes(schedule, mean=value), 20_000)["level"].double() for value in (mean, 0.0))
    torch.testing.assert_close(shifted.logit(), plain.logit() + mean, rtol=0, atol=1e-4)
    assert shifted.median().item() == pytest.approx(1 / (1 + math.exp(-mean)), abs=0.01)
    # Mean and variance of a logit-normal have no closed form.
    first, second = (expectation(lambda t, power=power: t**power, mean) for power in (1, 2))  # type: ignore[misc]
    assert shifted.mean().item() == pytest.approx(first, abs=0.005)
    assert shifted.var().item() == pytest.approx(second - first**2, abs=0.002)


def test_equal_generators_draw_equally() -> None:
    times = TrainingTimes(AsynchronousSchedule(0.3), "corrected", lead_jitter=1.0, leader_noise=0.2)
    one, same, other = (drawn(times, 8, seed) for seed in (0, 0, 1))
    assert one.keys() == {"level", "by_texture", "lead", "leader"}
    for name in one:
        assert torch.equal(one[name], same[name])
    assert not torch.equal(one["level"], other["level"])


@by_law
@pytest.mark.parametrize("mean", [0.0, -0.6])
@pytest.mark.parametrize("jitter", [0.0, 1.5])
def test_corrected_each_stream_sees_the_same_times_under_every_law(
    schedule: Schedule, mean: float, jitter: float
) -> None:
    """E_p[w f(t)] = E_q[f(t)] for any f, here for five: p and the weights both enter."""
    times = TrainingTimes(schedule, "corrected", mean, jitter)
    found, weights = times.of(drawn(times))
    assert weights is not None
    functions: list[Callable[[Tensor], Tensor]] = [
        torch.ones_like,
        lambda t: t,
        lambda t: t**2,
        lambda t: (t < 0.2).to(t.dtype),
        lambda t: (8 * t).sin(),
    ]
    for time, weight in zip(found, weights, strict=True):
        for function in functions:
            values = weight.double() * function(time.double())
            error = values.std().item() / math.sqrt(COUNT)
            assert values.mean().item() == pytest.approx(expectation(function, mean), abs=5 * error + 1e-4)


@by_law
def test_weights_are_at_most_two_and_two_together_and_none_of_what_stands_still(schedule: Schedule) -> None:
    times = TrainingTimes(schedule, "corrected")
    found, weights = times.of(drawn(times, 20_000))
    assert weights is not None
    torch.testing.assert_close(weights.texture + weights.semantic, torch.full((20_000,), 2.0))
    for time, weight in zip(found, weights, strict=True):
        assert weight.min() >= 0
        assert not weight[(time <= 0) | (time >= 1)].any()
        assert time.isfinite().all()


def test_an_offset_weighs_by_the_density_of_times_over_that_of_progress() -> None:
    """By the formula, in numbers: at T = 0.5 under offset 0.3, t_s = 0.5 and t_z = 0.2, both rates being 1."""

    def density(t: float) -> float:
        return math.exp(-(math.log(t / (1 - t)) ** 2) / 2) / (t * (1 - t) * math.sqrt(2 * math.pi))

    times = TrainingTimes(AsynchronousSchedule(0.3), "corrected")
    draws = {"level": torch.tensor([0.5, 0.2, 0.9]), "by_texture": torch.tensor([False, True, True])}
    found, weights = times.of(draws)
    assert weights is not None
    torch.testing.assert_close(found.semantic, torch.tensor([0.5, 0.5, 1.0]))
    torch.testing.assert_close(found.texture, torch.tensor([0.2, 0.2, 0.9]))
    both = density(0.5) + density(0.2)
    torch.testing.assert_close(weights.semantic, torch.tensor([2 * density(0.5) / both] * 2 + [0.0]))
    torch.testing.assert_close(weights.texture, torch.tensor([2 * density(0.2) / both] * 2 + [2.0]))


def test_synchronous_training_is_the_papers() -> None:
    paper, corrected = (
        TrainingTimes(AsynchronousSchedule(0.0), objective, -0.6) for objective in ("paper", "corrected")
    )  # type: ignore[arg-type]
    draws = drawn(corrected, 20_000)
    plain, none = paper.of(draws)
    found, weights = corrected.of(draws)
    assert none is None
    assert weights is not None
    for ours, theirs, weight in zip(found, plain, weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=3e-7, atol=1e-9)
        assert torch.equal(weight, torch.ones_like(weight))


def test_every_image_has_a_lead_of_its_own_around_the_path() -> None:
    times = TrainingTimes(LAWS["lead"], lead_jitter=0.8)
    draws = drawn(times, 20_000)
    found, _ = times.of(draws)
    leads = (found.semantic.double().logit() - found.texture.double().logit()) - 1.3
    torch.testing.assert_close(leads, draws["lead"].double(), rtol=0, atol=2e-3)
    assert leads.min() == pytest.approx(-0.8, abs=0.01)
    assert leads.max() == pytest.approx(0.8, abs=0.01)
    assert leads.mean().item() == pytest.approx(0, abs=0.02)
    assert leads.var().item() == pytest.approx(1.6**2 / 12, rel=0.03)


def test_a_lead_of_its_own_moves_what_moves_only() -> None:
    path = ShiftedLead(AsynchronousSchedule(0.3), torch.tensor([2.0, -2.0]))
    assert path.end == 1.3
    for progress, still in ((0.2, "texture"), (1.1, "semantic")):
        times: Streams[Tensor] = path.times(torch.tensor([progress, progress]))
        assert getattr(times, still).tolist() == [float(still == "semantic")] * 2


def test_semantics_that_have_arrived_are_shown_noisy_and_others_as_they_are() -> None:
    noisy, exact = (TrainingTimes(AsynchronousSchedule(0.3), "corrected", leader_noise=noise) for noise in (0.25, 0.0))
    draws = drawn(noisy, 20_000)
    found, weights = noisy.of(draws)
    plain, same_weights = exact.of(draws)
    arrived = (plain.semantic == 1) & (plain.texture < 1)
    assert 0.05 < arrived.float().mean() < 0.3
    assert torch.equal(found.semantic[~arrived], plain.semantic[~arrived])
    assert torch.equal(found.texture, plain.texture)
    shown = found.semantic[arrived]
    assert shown.min() == pytest.approx(0.75, abs=0.01)
    assert shown.max() == pytest.approx(1, abs=0.01)
    assert shown.mean().item() == pytest.approx(0.875, abs=0.01)
    assert weights is not None
    assert same_weights is not None
    assert torch.equal(weights.semantic, same_weights.semantic)
    assert not weights.semantic[arrived].any()


@pytest.mark.parametrize(("lead", "jitter"), [(0.5, 0.0), (1.0, 0.0), (-2.0, 0.0), (4.0, 0.0), (0.0, 2.0)])
def test_what_asynchrony_costs_in_draws_is_known_in_closed_form_for_leads(lead: float, jitter: float) -> None:
    """Both streams' logit times are normal, a lead apart: E w^2 = E 2 / (1 + exp(-(k x + k^2 / 2))), x normal."""
    leads = torch.linspace(lead - jitter, lead + jitter, 101).tolist() if jitter else [lead]
    squares = [expectation(lambda t, k=k: 2 * (k * t.logit() + k * k / 2).sigmoid(), 0.0) for k in leads]  # type: ignore[misc]
    times = TrainingTimes(LeadSchedule(lead), "corrected", -0.6, jitter)
    assert times.shares() == pytest.approx([len(squares) / sum(squares)] * 2, rel=0.01)


def test_a_stream_that_waits_for_the_other_learns_from_half_of_the_draws() -> None:
    for objective in ("paper", "corrected"):
        assert TrainingTimes(AsynchronousSchedule(1.0), objective).shares() == pytest.approx((0.5, 0.5), abs=0.01)
        assert TrainingTimes(AsynchronousSchedule(0.0), objective).shares() == (1, 1)
    moving = 1 - 0.5 * (1 + math.erf(math.log(0.3) / math.sqrt(2)))  # of the paper's: level above 0.3 / 1.3
    assert TrainingTimes(AsynchronousSchedule(0.3)).shares().texture == pytest.approx(moving, abs=0.01)

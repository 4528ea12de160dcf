"""The criterion by which a path is preferred: I-MMSE in closed form, and networks with known excess."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sfd_cli.diffusion.latents import Streams
from sfd_cli.diffusion.laws import CurveSchedule, KnotSchedule, LeadSchedule
from sfd_cli.diffusion.path_criterion import (
    ErrorSurface,
    gap_along,
    least_on_lattice,
    path_weights,
    preferred,
    schedule_weights,
)
from sfd_cli.diffusion.schedule import AsynchronousSchedule, Schedule

LEVELS = torch.linspace(-4, 2.2, 25)


def on_grid(levels: Tensor) -> tuple[Tensor, Tensor]:
    """Logit times of textures and semantics at every pair of levels, (n, n)."""
    return levels.double()[:, None].expand(-1, len(levels)), levels.double()[None].expand(len(levels), -1)


def velocity_errors(texture: Tensor, semantic: Tensor, levels: Tensor = LEVELS) -> Streams[Tensor]:
    """Errors of posterior means as errors of the velocity: over (1 - t)^2."""
    return Streams(
        *(
            error / (1 - level.sigmoid()).square()
            for error, level in zip((texture, semantic), on_grid(levels), strict=True)
        )
    )


def correlated(rho: float, levels: Tensor = LEVELS) -> Streams[Tensor]:
    """Of exact posterior means of two standard normal numbers with correlation `rho`, one in each stream."""
    texture, semantic = on_grid(levels)
    precision = torch.linalg.inv(torch.tensor([[1, rho], [rho, 1]], dtype=torch.float64))
    gamma = torch.diag_embed(torch.stack([(2 * texture).exp(), (2 * semantic).exp()], dim=-1))
    covariance = torch.linalg.inv(precision + gamma)
    return velocity_errors(covariance[..., 0, 0], covariance[..., 1, 1], levels)


def length(weights: Streams[Tensor], errors: Streams[Tensor]) -> float:
    """J of a path for means, or for one image."""
    return sum((weight * error).sum().item() for weight, error in zip(weights, errors, strict=True))


LAWS: list[Schedule] = [
    AsynchronousSchedule(0.0),
    LeadSchedule(1.5),
    CurveSchedule(-1.0, 2.0),
    CurveSchedule(4.0, -3.0),
    AsynchronousSchedule(0.3),
    KnotSchedule(((0.5, 0.1),)),
]


def test_along_any_path_independent_streams_reveal_what_their_entropies_say() -> None:
    """Of a normal number of variance v: ln(1 + gamma v) / 2 between both ends."""
    levels = torch.linspace(-4, 2.2, 201)
    texture, semantic = on_grid(levels)
    errors = velocity_errors(3 / (1 + 3 * (2 * texture).exp()), 1 / (1 + (2 * semantic).exp()), levels)
    ends = torch.tensor([-4.0, 2.2], dtype=torch.float64).mul(2).exp()
    expected = sum((1 + variance * ends).log().diff().item() / 2 for variance in (3.0, 1.0))
    for law in LAWS:
        assert length(schedule_weights(levels, law, steps=4000), errors) == pytest.approx(expected, rel=1e-3)
    for lead in (0.0, 1.0, -2.0, 4.0):
        assert length(path_weights(levels, lead, steps=4000), errors) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("semantic_end", [math.inf, 0.0, -1.5])
@pytest.mark.parametrize("rho", [0.0, 0.6, -0.9])
def test_exact_errors_have_the_same_integral_along_every_path(rho: float, semantic_end: float) -> None:
    """And it is the mutual information of both numbers with both observations, by determinants."""
    levels = torch.linspace(-4, 2.2, 201)
    errors = correlated(rho, levels)

    def information(texture: float, semantic: float) -> float:
        covariance = torch.tensor([[1, rho], [rho, 1]], dtype=torch.float64)
        gamma = torch.tensor([[2 * texture], [2 * semantic]], dtype=torch.float64).exp()
        return torch.logdet(torch.eye(2, dtype=torch.float64) + gamma * covariance).item() / 2

    expected = information(2.2, min(2.2, semantic_end)) - information(-4.0, -4.0)
    for law in LAWS:
        weights = schedule_weights(levels, law, semantic_end, steps=4000)
        assert length(weights, errors) == pytest.approx(expected, rel=2e-3)
    for lead in (0.0, 1.0, -2.0, 4.0):
        weights = path_weights(levels, lead, semantic_end=semantic_end, steps=4000)
        assert length(weights, errors) == pytest.approx(expected, rel=2e-3)
    coarse = Streams(*(error[::8, ::8] for error in errors))
    assert least_on_lattice(levels[::8], coarse, semantic_end) == pytest.approx(expected, rel=2e-3)


def surface(errors: Streams[Tensor], excess: Streams[Tensor], noise: float, count: int = 60) -> ErrorSurface:
    """`count` images whose errors are those plus the excess, each times a number of its own, and noise."""
    generator = torch.Generator().manual_seed(0)
    size = 1 + 0.3 * torch.randn(count, 1, 1, generator=generator, dtype=torch.float64)

    def of(error: Tensor, more: Tensor) -> Tensor:
        own = torch.randn(count, *error.shape, generator=generator, dtype=torch.float64)
        return size * (error + more) * (1 + noise * own)

    return ErrorSurface(LEVELS, Streams(*map(of, errors, excess)), torch.arange(count))


def without(surface: ErrorSurface) -> ErrorSurface:
    """A control on which nothing is wrong and nothing to be known, so that nothing is taken off."""
    return ErrorSurface(surface.levels, Streams(*map(torch.zeros_like, surface.errors)), surface.clusters)


def nothing() -> Streams[Tensor]:
    zero = torch.zeros(len(LEVELS), len(LEVELS), dtype=torch.float64)
    return Streams(zero, zero)


def excess_of_textures_before_semantics() -> Streams[Tensor]:
    """Textures are modelled badly while semantics are below a level of 0."""
    _, semantic = on_grid(LEVELS)
    return Streams(0.5 * (-3 * semantic).sigmoid(), nothing().semantic)


def test_a_network_that_needs_semantics_for_textures_prefers_a_lead() -> None:
    measured = surface(correlated(0.6), excess_of_textures_before_semantics(), 0.05)
    found = preferred(measured, without(measured))
    assert found.is_clear
    assert found.lead > 1
    assert found.gap < -0.05
    assert (found.related_gap, found.related_error) == (found.gap, found.standard_error)
    assert found.lattice_gap <= found.lead_gap + 0.01
    assert found.lead_gap < 0


def test_with_the_streams_exchanged_it_prefers_the_opposite() -> None:
    straight = surface(correlated(0.6), excess_of_textures_before_semantics(), 0.05)
    turned = ErrorSurface(LEVELS, Streams(*(error.mT for error in reversed(straight.errors))), straight.clusters)
    leads = tuple(0.5 * step for step in range(-6, 7))
    one, other = (preferred(each, without(each), leads) for each in (straight, turned))
    assert other.lead == -one.lead
    assert other.gap == pytest.approx(one.gap, rel=1e-6)


def test_a_network_without_excess_has_no_preference() -> None:
    measured = surface(correlated(0.6), nothing(), 0.05)
    found = preferred(measured, without(measured))
    assert abs(found.gap) < 0.02
    assert not found.is_clear


def test_what_a_lead_gains_beside_strangers_semantics_as_well_is_told() -> None:
    """The errors of a network are larger before semantics are clear, though they tell nothing that it needs."""
    easier = excess_of_textures_before_semantics()
    own, control = surface(correlated(0.6), easier, 0.05), surface(correlated(0.0), easier, 0.05)
    found = preferred(own, control)
    assert found.is_clear
    assert found.gap < -0.05
    assert abs(found.related_gap) < 0.03


def test_what_a_lead_gains_beyond_that_is_told_too() -> None:
    easier = excess_of_textures_before_semantics()
    more = Streams(2 * easier.texture, easier.semantic)
    own, control = surface(correlated(0.6), more, 0.0), surface(correlated(0.0), easier, 0.0)
    found, alone = preferred(own, control), preferred(own, without(own))
    assert found[:5] == alone[:5], "the control chooses no path"
    assert found.related_gap == pytest.approx(alone.gap / 2, rel=0.1)


def test_the_least_of_many_noisy_paths_is_not_taken_for_a_preference() -> None:
    """Judged on the clusters that chose it, noise would seem to prefer some path nearly always."""
    exact, clear, chosen_looks_clear = correlated(0.6), 0, 0
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        noisy = Streams(*(error * (1 + torch.randn(24, *error.shape, generator=generator)) for error in exact))
        measured = ErrorSurface(LEVELS[::4], Streams(*(one[:, ::4, ::4] for one in noisy)), torch.arange(24))
        found = preferred(measured, without(measured))
        clear += found.is_clear
        chosen_looks_clear += found.lead_gap + 2 * found.standard_error < 0
    assert clear <= 4
    assert chosen_looks_clear > 4 * max(clear, 1)


def test_near_duplicates_count_as_one() -> None:
    once = surface(correlated(0.6), excess_of_textures_before_semantics(), 0.05, 20)
    repeated = ErrorSurface(LEVELS, Streams(*(error.repeat(3, 1, 1) for error in once.errors)), once.clusters.repeat(3))
    pairs = zip(preferred(once, without(once)), preferred(repeated, without(repeated)), strict=True)
    for one, other in pairs:
        assert other == pytest.approx(one)


def test_too_few_clusters_are_refused() -> None:
    with pytest.raises(ValueError, match="3 clusters"):
        preferred(few := surface(correlated(0.0), nothing(), 0.0, 3), without(few))


@pytest.mark.parametrize("law", LAWS)
def test_exact_errors_give_no_law_a_gap(law: Schedule) -> None:
    levels = torch.linspace(-4, 2.2, 201)
    errors = correlated(0.6, levels)
    exact = ErrorSurface(levels, Streams(*(error.expand(4, -1, -1) for error in errors)), torch.arange(4))
    assert gap_along(exact, exact, exact, law) == pytest.approx((0,) * 6, abs=1e-3)


@pytest.mark.parametrize("rho", [0.6, 0.9])
def test_nine_levels_are_enough_where_errors_are_smooth(rho: float) -> None:
    """As many as by default: what interpolation gets wrong is far below the gaps that are taken for clear."""
    levels = torch.linspace(-4, 2.2, 9)
    exact = ErrorSurface(
        levels, Streams(*(error.expand(4, -1, -1) for error in correlated(rho, levels))), torch.arange(4)
    )
    assert (
        max(abs(gap_along(exact, exact, exact, LeadSchedule(lead)).gap) for lead in (-2.0, -1.0, 0.5, 1.0, 2.0, 4.0))
        < 3e-3
    )


def test_a_preference_that_hangs_on_what_is_between_the_levels_is_not_clear() -> None:
    """A gain that only one of both interpolations sees, on few levels: the same errors on many have none."""
    many = torch.linspace(-4, 2.2, 49)
    texture, semantic = on_grid(many)
    jump = (20 * (texture - semantic + 1)).sigmoid()  # steep, and away from the synchronous path
    errors = Streams(correlated(0.6, many).texture + 0.1 * jump, correlated(0.6, many).semantic)
    coarse = ErrorSurface(many[::12], Streams(*(one[::12, ::12].expand(8, -1, -1) for one in errors)), torch.arange(8))
    found = preferred(coarse, without(coarse))
    assert found.interpolation > 0.01
    better = found._replace(gap=-1.5 * found.interpolation, standard_error=0.0)
    assert better._replace(interpolation=0.0).is_clear
    assert not better.is_clear, "by less than twice as much"


def test_the_gap_of_a_law_is_what_its_path_costs_more_than_the_synchronous_one() -> None:
    found = surface(correlated(0.6), excess_of_textures_before_semantics(), 0.1)
    seen = ErrorSurface(found.levels, Streams(*(1.5 * error[2:] for error in found.errors)), found.clusters[2:])
    gap = gap_along(found, without(found), seen, LeadSchedule(2.0))
    ahead, straight = path_weights(LEVELS, 2.0), path_weights(LEVELS, 0.0)
    images = [Streams(*errors) for errors in zip(*found.errors, strict=True)]
    each = [length(ahead, image) - length(straight, image) for image in images]
    assert gap.gap == gap.related_gap == pytest.approx(sum(each) / len(each), rel=2e-3)
    spread = torch.tensor(each, dtype=torch.float64).std().item() / math.sqrt(len(each))
    assert gap.standard_error == gap.related_error == pytest.approx(spread, rel=2e-2)
    assert gap.gap < -2 * gap.standard_error
    assert gap.trained_on_gap == pytest.approx(1.5 * sum(each[2:]) / len(each[2:]), rel=2e-3)
    assert gap_along(found, found, found, LeadSchedule(2.0)).related_gap == 0


def test_a_gap_knows_which_stream_waits() -> None:
    """An offset is a large lead at both ends: with an excess of textures before semantics it is a gain."""
    found = surface(correlated(0.6), excess_of_textures_before_semantics(), 0.0)
    ahead, behind = (
        gap_along(found, found, found, law).gap
        for law in (AsynchronousSchedule(0.5), KnotSchedule(((0.0, 0.5), (0.5, 1.0))))
    )
    assert ahead < 0 < behind


def test_detail_of_semantics_that_is_never_decoded_speaks_against_no_lead() -> None:
    """Semantics are modelled badly once they are nearly clean and textures are not: past the end that is judged."""
    needed, (texture, semantic) = excess_of_textures_before_semantics(), on_grid(LEVELS)
    fine = 5 * (4 * (semantic - 1)).sigmoid() * (-4 * texture).sigmoid()
    to_the_end = surface(correlated(0.6), Streams(needed.texture, fine), 0.05)
    judged = replace(to_the_end, semantic_end=0.0)
    assert preferred(to_the_end, without(to_the_end)).lead <= 0.5
    found = preferred(judged, without(judged))
    assert found.is_clear
    assert found.lead > 1
    assert gap_along(judged, judged, judged, LeadSchedule(2.0)).gap < 0
    assert gap_along(to_the_end, to_the_end, to_the_end, LeadSchedule(2.0)).gap > 0

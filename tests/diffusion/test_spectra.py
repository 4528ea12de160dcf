"""Spectra, information and levels against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sfd_cli.diffusion import spectra as module
from sfd_cli.diffusion.latents import Streams
from sfd_cli.diffusion.spectra import (
    REPLICATES,
    Directions,
    Estimate,
    Levels,
    Spectrum,
    directions_of_others,
    level_of,
    resampling_weights,
    resolved_share,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(variances: list[float], count: int = 4000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images (n, D) of these variances along directions of their own, and folds (n,) of them."""
    width = len(variances)
    turned = torch.linalg.qr(torch.randn(width, width, generator=seeded(99), dtype=torch.float64)).Q
    x = torch.randn(count, width, generator=seeded(seed), dtype=torch.float64) * torch.tensor(variances).sqrt()
    return (x @ turned.T + 3).float(), torch.arange(count) % 4


def whole(variances: list[float], count: int = 4000, seed: int = 0) -> Spectrum:
    x, folds = gaussian(variances, count, seed)
    return Spectrum.of_whole(x, folds, directions_of_others(x, folds))


def alone(spectrum: Spectrum) -> Tensor:
    """A cluster of its own for every image."""
    return torch.arange(len(spectrum.squares))


def exact(*variances: float) -> Spectrum:
    """Two images whose squares have these means."""
    return Spectrum(torch.tensor([variances, variances], dtype=torch.float64))


def test_the_information_of_a_known_spectrum() -> None:
    logits = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    found = exact(4.0, 0.25).information(logits)
    for logit, nats in zip(logits.tolist(), found.tolist(), strict=True):
        t = 1 / (1 + math.exp(-logit))
        gamma = (t / (1 - t)) ** 2
        assert nats == pytest.approx(0.5 * math.log(1 + 4 * gamma) + 0.5 * math.log(1 + gamma / 4))


def test_the_information_grows_with_the_resolved_variance_as_i_mmse_says() -> None:
    # dI / dgamma = mmse / 2, and mmse = (1 - resolved) * trace.
    spectrum, logit, step = exact(3.0, 0.5, 0.1), 0.3, 1e-4
    around = torch.tensor([logit - step, logit, logit + step], dtype=torch.float64)
    nats, share, gamma = spectrum.information(around), spectrum.resolved(around), (2 * around).exp()
    slope = float((nats[2] - nats[0]) / (gamma[2] - gamma[0]))
    assert slope == pytest.approx(float((1 - share[1]) * 3.6 / 2), rel=1e-6)


def test_positions_count_as_often_as_there_are() -> None:
    logits = torch.tensor([0.5], dtype=torch.float64)
    squares = torch.tensor([[2.0, 1.0]], dtype=torch.float64)
    assert float(Spectrum(squares, 16).information(logits)) == pytest.approx(
        16 * float(Spectrum(squares).information(logits))
    )
    assert float(Spectrum(squares, 16).resolved(logits)) == float(Spectrum(squares).resolved(logits))


def test_one_variance_is_half_resolved_where_the_noise_is_as_large() -> None:
    assert float(level_of(torch.tensor([9.0, 9.0]).double(), 0.5)) == pytest.approx(-math.log(3))
    # share s: gamma lambda / (1 + gamma lambda) = s
    assert float(level_of(torch.tensor([1.0]).double(), 0.9)) == pytest.approx(math.log(9) / 2)


def test_levels_of_many_spectra_are_where_each_has_resolved_the_share() -> None:
    values = torch.rand(5, 7, generator=seeded(), dtype=torch.float64) * 10
    levels = level_of(values, 0.25)
    assert levels.shape == (5,)
    torch.testing.assert_close(resolved_share(values, levels), torch.full((5,), 0.25, dtype=torch.float64))


def test_textures_k_times_as_large_draw_level_at_a_lead_of_ln_k() -> None:
    semantic = whole([1.0] * 6)
    texture = Spectrum(semantic.squares * 2.5**2)
    levels = Levels.of(Streams(texture, semantic), 0.5, alone(texture), seeded())
    assert levels.lead.value == pytest.approx(math.log(2.5), abs=1e-9)
    assert levels.lead.standard_error == pytest.approx(0, abs=1e-9)
    assert levels.streams.semantic.value - levels.streams.texture.value == pytest.approx(levels.lead.value)


def test_the_lead_is_ln_k_for_independent_isotropic_streams_of_any_width() -> None:
    # 40 channels from 60 images: in their own directions the variances would be far from equal.
    levels = Levels.of(
        Streams(whole([4.0] * 40, count=60), whole([1.0] * 3, count=60, seed=5)), 0.5, torch.arange(60), seeded()
    )
    assert abs(levels.lead.value - math.log(2)) < 3 * levels.lead.standard_error
    assert 0 < levels.lead.standard_error < 0.1


def test_the_same_seed_gives_the_same_errors_and_the_size_of_numbers_does_not_matter() -> None:
    streams = Streams(whole([4.0, 1e-6], count=60), Spectrum(whole([1.0], count=60, seed=5).squares * 1e-6))
    first, again = (Levels.of(streams, 0.5, torch.arange(60), seeded()) for _ in range(2))
    assert first == again


def test_a_stream_that_is_a_copy_of_the_other_draws_level_at_0_without_error() -> None:
    spectrum = whole([5.0, 1.0, 0.1])
    levels = Levels.of(Streams(spectrum, spectrum), 0.3, alone(spectrum), seeded())
    assert levels.lead == (0.0, 0.0)


def test_the_error_of_a_level_is_that_over_new_images() -> None:
    drawn = [level_of(whole([6.0, 2.0, 0.5], count=300, seed=seed).values, 0.5) for seed in range(60)]
    spread = float(torch.stack(drawn).std())
    spectrum = whole([6.0, 2.0, 0.5], count=300)
    said = Levels.of(Streams(spectrum, spectrum), 0.5, alone(spectrum), seeded()).streams.texture.standard_error
    assert said == pytest.approx(spread, rel=0.3)


def test_the_spectrum_is_that_of_the_covariance() -> None:
    variances = [8.0, 3.0, 1.0, 0.2]
    torch.testing.assert_close(whole(variances).values, torch.tensor(variances).double(), rtol=0.1, atol=0)


def test_no_variance_is_lost_to_directions_that_the_images_did_not_span() -> None:
    x, folds = gaussian([1.0] * 50, count=40)
    spectrum = Spectrum.of_whole(x, folds, directions_of_others(x, folds))
    means = torch.stack([x[folds != fold].double().mean(dim=0) for fold in range(4)])
    assert float(spectrum.values.sum()) == pytest.approx(float((x - means[folds]).square().sum() / 40))


def test_directions_of_more_channels_than_images_are_those_along_which_they_differ(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.randn(10, 30, generator=seeded())
    covariance = torch.cov(x.double().T, correction=0)
    complete = Directions.of(x)
    assert complete.basis.shape == (30, 30)
    monkeypatch.setattr(module, "MOST_VALUES", 20)
    thin = Directions.of(x)
    assert thin.basis.shape == (30, 9)
    torch.testing.assert_close(thin.mean, x.double().mean(dim=0))
    assert Directions.of(x[[0, 1, 2, 3, 4] * 2]).basis.shape == (30, 4)
    for found in (complete, thin):
        torch.testing.assert_close(found.basis @ torch.diag(found.variances) @ found.basis.T, covariance)
        torch.testing.assert_close(found.basis.T @ found.basis, torch.eye(found.basis.shape[1], dtype=torch.float64))


def test_positions_are_averaged_each_less_its_own_mean() -> None:
    x = torch.randn(4000, 3, 2, 2, generator=seeded()) * torch.tensor([3.0, 1.0, 0.5])[:, None, None]
    x += 10 * torch.arange(4.0).reshape(1, 1, 2, 2)  # of positions, which tells nothing of an image
    spectrum = Spectrum.of_positions(x, torch.arange(4000) % 4)
    assert spectrum.copies == 4
    assert spectrum.squares.shape == (4000, 3)
    torch.testing.assert_close(spectrum.values, torch.tensor([9.0, 1.0, 0.25]).double(), rtol=0.05, atol=0)


def test_a_grid_of_one_position_is_taken_as_a_whole_image_is() -> None:
    x, folds = gaussian([1.0] * 20, count=30)
    directions = directions_of_others(x, folds)
    assert len(directions) == 4
    positions = Spectrum.of_positions(x[:, :, None, None], folds)
    torch.testing.assert_close(positions.squares, Spectrum.of_whole(x, folds, directions).squares, rtol=1e-4, atol=1e-5)


def test_twins_are_drawn_together_and_tell_no_more_than_one() -> None:
    spectrum = whole([6.0, 2.0, 0.5], count=300)
    once = Levels.of(Streams(spectrum, spectrum), 0.5, alone(spectrum), seeded()).streams.texture
    twice = Spectrum(torch.cat((spectrum.squares, spectrum.squares)))
    together = torch.arange(300).repeat(2)
    told = Levels.of(Streams(twice, twice), 0.5, together, seeded()).streams.texture
    assert told == pytest.approx(once)


def test_resamplings_are_shares_of_the_images_of_as_many_clusters() -> None:
    weights = resampling_weights(torch.arange(50), seeded())
    assert weights.shape == (REPLICATES, 50)
    assert torch.equal(weights, resampling_weights(torch.arange(50), seeded()))
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(REPLICATES, dtype=torch.float64))
    torch.testing.assert_close((weights * 50).round(), weights * 50)
    # A count of draws is binomial: variance 1 - 1 / n.
    assert float((weights * 50).var()) == pytest.approx(1 - 1 / 50, rel=0.1)
    uneven = resampling_weights(torch.tensor([0, 1, 1]), seeded())
    assert {tuple(row) for row in uneven.tolist()} == {(1.0, 0.0, 0.0), (0.0, 0.5, 0.5), (1 / 3, 1 / 3, 1 / 3)}


def test_a_stream_without_a_spectrum_is_refused() -> None:
    with pytest.raises(ValueError, match="same"):
        Spectrum(torch.zeros(3, 2))
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="finite"):
            Directions.of(torch.tensor([[1.0, 2.0], [3.0, bad]]))


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, math.nan])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        level_of(torch.ones(2), share)


def test_streams_of_other_images_are_refused() -> None:
    three, two = Spectrum(torch.ones(3, 1)), Spectrum(torch.ones(2, 1))
    for streams, clusters in ((Streams(three, two), 3), (Streams(three, three), 2)):
        with pytest.raises(ValueError, match=f"3 images of textures, .* and {clusters} clusters"):
            Levels.of(streams, 0.5, torch.arange(clusters), seeded())


def test_an_estimate_is_above_zero_by_more_than_two_errors() -> None:
    assert [Estimate(value, 1.5).is_above_zero for value in (3.1, 3.0, -4.0)] == [True, False, False]

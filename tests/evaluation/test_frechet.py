"""The Fréchet distance and the moments under it."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
import scipy.linalg
import torch
from hand_made_features import features, fitted
from hypothesis import given, settings
from hypothesis import strategies as st

from sfd_cli.evaluation import frechet, gaussian
from sfd_cli.evaluation.frechet import extrapolated, frechet_distance, standard_error
from sfd_cli.evaluation.gaussian import FeatureMoments, Gaussian
from sfd_cli.evaluation.reasons import TooFewImages


def by_scipy(a: torch.Tensor, b: torch.Tensor) -> float:
    first, second = a.double().numpy(), b.double().numpy()
    covariances = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    shift = first.mean(0) - second.mean(0)
    return float(shift @ shift + np.trace(covariances[0] + covariances[1] - 2 * np.real(root)))


def test_the_distance_equals_scipys_matrix_square_root() -> None:
    a, b = features(400, 24, 1), 1.3 * features(300, 24, 2, shift=0.5)
    assert frechet_distance(fitted(a), fitted(b)) == pytest.approx(by_scipy(a, b), rel=1e-9)


def test_the_distance_equals_torch_fidelitys() -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    a, b = features(400, 24, 1).double(), 1.3 * features(300, 24, 2, shift=0.5).double()
    theirs = fid_statistics_to_metric(fid_features_to_statistics(a), fid_features_to_statistics(b), verbose=False)
    assert frechet_distance(fitted(a), fitted(b)) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    means=st.lists(st.floats(-5, 5), min_size=3, max_size=3),
    deviations=st.lists(st.floats(0, 4), min_size=6, max_size=6),
)
def test_commuting_gaussians_have_the_closed_form_distance(means: list[float], deviations: list[float]) -> None:
    first, second = np.array(deviations[:3]), np.array(deviations[3:])
    a = Gaussian(np.zeros(3), np.diag(first**2), None)
    b = Gaussian(np.array(means), np.diag(second**2), None)
    expected = np.sum(np.square(means)) + np.sum((first - second) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-9)


def test_the_distance_holds_with_fewer_images_than_features() -> None:
    a, b = features(20, 64, 1), features(30, 64, 2)
    # Wasserstein between empirical covariances through the nuclear norm of X^T Y, which needs no square root at all.
    x, y = ((rows - rows.mean(0)).double() / (len(rows) - 1) ** 0.5 for rows in (a, b))
    shift = (a.double().mean(0) - b.double().mean(0)).square().sum()
    expected = shift + x.square().sum() + y.square().sum() - 2 * torch.linalg.matrix_norm(x @ y.T, "nuc")
    assert frechet_distance(fitted(a), fitted(b)) == pytest.approx(expected.item(), rel=1e-6)
    assert frechet_distance(fitted(a), fitted(a)) == pytest.approx(0, abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 60), max_size=5), gathered=st.sampled_from([1, 7, 4096]))
def test_moments_do_not_depend_on_how_the_features_arrive(cuts: list[int], gathered: int) -> None:
    rows = features(60, 5, 3, shift=100.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gaussian, "GATHERED", gathered)
        parts = (FeatureMoments(5), FeatureMoments(5))
        edges = [0, *sorted(cuts), 60]
        for number, (start, stop) in enumerate(itertools.pairwise(edges)):
            parts[number % 2].update(rows[start:stop])
        found = Gaussian.of(parts[0].moments().merge(parts[1].moments()))
    assert found.count == 60
    np.testing.assert_allclose(found.mean, rows.double().numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(rows.double().numpy(), rowvar=False), rtol=1e-9, atol=1e-9)


def test_statistics_of_another_width_or_with_nan_are_refused() -> None:
    good = fitted(features(10, 4))
    with pytest.raises(ValueError, match=r"4.*5"):
        frechet_distance(good, fitted(features(10, 5)))
    with pytest.raises(ValueError, match="finite"):
        frechet_distance(good, Gaussian(np.full(4, np.nan), np.eye(4), 3))
    with pytest.raises(TooFewImages) as caught:
        fitted(features(1, 4))
    assert (caught.value.needed, caught.value.found) == (2, 1)
    two = torch.tensor([[1.0, 0.0], [3.0, 1.0]])
    np.testing.assert_allclose(fitted(two).covariance, [[2, 1], [1, 0.5]])


def test_moments_of_no_features_have_the_shape_of_some() -> None:
    moments = FeatureMoments(3).moments()
    assert (moments.count, moments.mean.shape, moments.deviations.shape) == (0, (3,), (3, 3))


def test_its_standard_error_is_that_of_leaving_out_one_image_at_a_time() -> None:
    a, b = features(300, 4, 5, shift=0.3) * torch.tensor([2.0, 1.0, 0.5, 0.2]), features(300, 4, 6)
    reference = fitted(b)
    left = np.array([frechet_distance(fitted(torch.cat([a[:i], a[i + 1 :]])), reference) for i in range(len(a))])
    jackknife = np.sqrt((len(a) - 1) * left.var())
    assert standard_error(a, fitted(a), reference) == pytest.approx(jackknife, rel=0.03)


def test_its_standard_error_is_the_same_in_parts_and_holds_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    a, reference = features(20_000, 6, 1), fitted(features(300, 6, 2, shift=0.5))
    monkeypatch.setattr(frechet, "GATHERED", len(a))
    ours = fitted(a)
    whole, at_once = measured(a, ours, reference)
    monkeypatch.setattr(frechet, "GATHERED", 500)
    in_parts, peak = measured(a, ours, reference)
    assert in_parts == pytest.approx(whole, rel=1e-9)
    assert peak < at_once / 5


def measured(rows: torch.Tensor, a: Gaussian, b: Gaussian) -> tuple[float | None, int]:
    """The standard error, and the peak of NumPy's memory meanwhile."""
    tracemalloc.start()
    found = standard_error(rows, a, b)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found, peak


def test_its_standard_error_covers_what_other_draws_give() -> None:
    reference = fitted(features(2000, 8, 7, shift=0.2))
    draws = [features(400, 8, 100 + seed) * 1.2 for seed in range(40)]
    distances = [frechet_distance(fitted(rows), reference) for rows in draws]
    errors = [standard_error(rows, fitted(rows), reference) for rows in draws]
    assert np.mean(errors) == pytest.approx(np.std(distances, ddof=1), rel=0.3)


@pytest.mark.parametrize(("width", "count"), [(40, 30), (40, 12), (64, 60)])
def test_the_error_of_few_images_is_rather_too_large_than_too_small(width: int, count: int) -> None:
    scale = torch.linspace(0.2, 2, width)
    reference = fitted(features(3000, width, 7, shift=0.3) * scale)
    draws = [features(count, width, 100 + seed) * scale for seed in range(80)]
    distances = [frechet_distance(fitted(rows), reference) for rows in draws]
    errors = [standard_error(rows, fitted(rows), reference) for rows in draws[:20]]
    assert 1 < np.mean(errors) / np.std(distances, ddof=1) < 1.6


def test_rows_that_were_kept_stand_for_all_images_and_too_few_images_have_no_standard_error() -> None:
    a, reference = features(400, 3, 8), fitted(features(200, 3, 9, shift=1.0))
    whole, some = standard_error(a, fitted(a), reference), standard_error(a[::2], fitted(a), reference)
    assert whole is not None
    assert some == pytest.approx(whole, rel=0.15)
    assert standard_error(a[:3], fitted(a[:3]), reference) is None
    assert standard_error(a[:4], fitted(a[:4]), reference) is not None


def test_followed_to_infinitely_many_samples_it_is_nearer_to_the_truth() -> None:
    width, truth = 12, Gaussian(np.zeros(12), np.eye(12), None)
    exact = frechet_distance(Gaussian(np.full(width, 0.2), 1.44 * np.eye(width), None), truth)
    draws = [torch.randn(200, width, generator=torch.Generator().manual_seed(seed)) * 1.2 + 0.2 for seed in range(30)]
    plain = np.mean([frechet_distance(fitted(rows), truth) for rows in draws])
    followed = [extrapolated(rows, truth, seed=0) for rows in draws]
    error = np.std(followed, ddof=1) / np.sqrt(len(followed))
    assert plain - exact > 0.3, "few samples are further away"
    assert np.mean(followed) == pytest.approx(exact, abs=3 * error + 0.02)
    assert extrapolated(draws[0], truth, seed=0) == followed[0]
    assert extrapolated(draws[0], truth, seed=1) != followed[0]


def test_half_of_the_samples_must_be_more_than_their_features_to_follow_the_distance() -> None:
    reference = fitted(features(50, 4, 9))
    with pytest.raises(TooFewImages) as caught:
        extrapolated(features(9, 4), reference, 0)
    assert (caught.value.needed, caught.value.found) == (10, 9)
    assert extrapolated(features(10, 4), reference, 0) < np.inf

"""The Fréchet distance, the moments under it, and the metrics on features."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfd_cli.errors import UserError
from sfd_cli.evaluation import frechet
from sfd_cli.evaluation.frechet import Gaussian, Moments, frechet_distance
from sfd_cli.evaluation.neighbours import kernel_distance, precision_recall


def features(count: int, width: int, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(99))
    return torch.randn(count, width, generator=generator) @ mixing + shift


def fitted(rows: torch.Tensor) -> Gaussian:
    moments = Moments(rows.shape[1])
    moments.update(rows)
    return moments.gaussian()


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
    parts = (Moments(5), Moments(5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frechet, "GATHERED", gathered)
        edges = [0, *sorted(cuts), 60]
        for number, (start, stop) in enumerate(itertools.pairwise(edges)):
            parts[number % 2].update(rows[start:stop])
        found = parts[0].merged(parts[1]).gaussian()
    assert found.count == 60
    np.testing.assert_allclose(found.mean, rows.double().numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(rows.double().numpy(), rowvar=False), rtol=1e-9, atol=1e-9)


def test_statistics_of_another_width_or_with_nan_are_refused() -> None:
    good = fitted(features(10, 4))
    with pytest.raises(UserError, match="width 4"):
        frechet_distance(good, fitted(features(10, 5)))
    with pytest.raises(UserError, match="not finite"):
        frechet_distance(good, Gaussian(np.full(4, np.nan), np.eye(4), 3))
    with pytest.raises(UserError, match="at least 2 images, found 1"):
        fitted(features(1, 4))


def test_precision_is_about_samples_and_recall_about_the_reference() -> None:
    reference = features(200, 4, 1)
    collapsed = reference[:1] + 1e-3 * features(50, 4, 2)
    precision, recall = precision_recall(collapsed, reference, neighbours=3)
    assert precision > 0.9
    assert recall < 0.1


def test_precision_and_recall_agree_with_a_direct_count() -> None:
    samples, reference, k = features(40, 3, 1), features(60, 3, 2, shift=0.7), 3

    def covered(points: torch.Tensor, centres: torch.Tensor) -> float:
        within = torch.cdist(centres, centres).sort(dim=1).values[:, k]
        return (torch.cdist(points, centres) <= within).any(dim=1).double().mean().item()

    found = precision_recall(samples, reference, k)
    assert found == pytest.approx((covered(samples, reference), covered(reference, samples)))


def test_precision_needs_a_kth_neighbour() -> None:
    with pytest.raises(ValueError, match="more than 3 images"):
        precision_recall(features(3, 4), features(50, 4), neighbours=3)


def test_the_kernel_distance_is_near_zero_between_equals_and_repeats() -> None:
    equal = kernel_distance(features(120, 6, 1), features(120, 6, 2))
    apart = kernel_distance(features(120, 6, 1), features(100, 6, 2, shift=5.0))
    assert abs(equal["mean"]) < 0.05 * apart["mean"]
    assert apart["subset"] == 100
    assert kernel_distance(features(120, 6, 1), features(100, 6, 2, shift=5.0)) == apart

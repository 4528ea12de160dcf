"""The Fréchet distance between two sets of features."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sfd_cli.evaluation.extractor import SPATIAL
from sfd_cli.evaluation.gaussian import GATHERED, Gaussian, gaussian_of_subset
from sfd_cli.evaluation.metric import GaussianDistance
from sfd_cli.evaluation.reasons import TooFewImages

PARTS = 6
"""Parts of the samples that an extrapolation goes by."""
HALVES = 32
"""Random halves of the samples that the error is estimated from where there are few."""


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared 2-Wasserstein distance between two Gaussians (Heusel et al. 2017, Equation 6).

    `|mu_a - mu_b|^2 + Tr(A) + Tr(B) - 2 Tr((AB)^(1/2))`. AB is similar to the symmetric positive
    semi-definite `A^(1/2) B A^(1/2)`, so the trace is the sum of the square roots of the latter's
    eigenvalues: two symmetric eigendecompositions in float64, which stay exact for singular covariances
    (fewer images than features), where a general matrix square root does not.

    Raises:
        ValueError: the widths differ, or a value is not finite.
    """
    if a.width != b.width:
        raise ValueError(f"features of width {a.width} cannot be compared with statistics of width {b.width}")
    if not (a.is_finite and b.is_finite):
        raise ValueError("means and covariances must be finite")
    return _distance(a, _root(a.covariance), b)


def _distance(a: Gaussian, root: np.ndarray, b: Gaussian) -> float:
    """The distance, with the root of a's covariance."""
    middle = root @ b.covariance @ root
    eigenvalues = np.linalg.eigvalsh((middle + middle.T) / 2)
    trace_of_root = np.sqrt(eigenvalues.clip(min=0)).sum()
    shift = a.mean - b.mean
    distance = shift @ shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * trace_of_root
    return max(float(distance), 0.0)


def standard_error(rows: Tensor, a: Gaussian, b: Gaussian) -> float | None:
    """Standard error of `frechet_distance(a, b)` over draws of the images behind `a`; `b` is taken as it is.

    The infinitesimal jackknife: with T the optimal transport from `a` to `b` (symmetric, `T A T = B`), an image
    with features x moves the distance by `2 (mu_a - mu_b) (x - mu_a) + (x - mu_a)^T (I - T) (x - mu_a)`, less the mean
    of that, over n; the error is the standard deviation of this over the root of n. Images are taken as independent:
    where classes come in turn, which draws more evenly, it is a little too large.

    Args:
        rows: features (k, D) of all images behind `a`, or of as many as were kept.
        a: the Gaussian of the images, with their count.
        b: the Gaussian they are compared with.

    Where there are not more images than features the distance is no smooth function, and the error is the spread of the
    distances of random halves: over draws without replacement a half varies as much as all images do over new draws.

    Returns:
        The error; None of fewer than four images.
    """
    if a.count is None or a.count <= a.width:
        return _spread_of_halves(rows, b) if len(rows) >= 4 else None
    root = _root(b.covariance)
    middle = root @ a.covariance @ root
    values, vectors = np.linalg.eigh((middle + middle.T) / 2)
    kept = values > values.max(initial=0) * len(values) * np.finfo(float).eps
    factor = root @ vectors[:, kept] / values[kept] ** 0.25

    def moved(part: Tensor) -> np.ndarray:
        away = part.double().numpy() - a.mean
        return 2 * away @ (a.mean - b.mean) + np.square(away).sum(axis=1) - np.square(away @ factor).sum(axis=1)

    # All at once they would be four times the features in float64.
    return float(np.concatenate([moved(part) for part in rows.split(GATHERED)]).std(ddof=1) / np.sqrt(a.count))


def _spread_of_halves(rows: Tensor, b: Gaussian) -> float:
    """Standard deviation of the distance to `b` over random halves of few rows, from matrices as large as a half."""
    generator, size, found = torch.Generator().manual_seed(0), len(rows) // 2, []
    for _ in range(HALVES):
        half = rows[torch.randperm(len(rows), generator=generator)[:size]].double().numpy()
        mean = half.mean(axis=0)
        away = (half - mean) / np.sqrt(size - 1)
        # The product of both covariances has the eigenvalues of this, and zeros.
        eigenvalues = np.linalg.eigvalsh(away @ b.covariance @ away.T)
        spread = np.square(away).sum() + np.trace(b.covariance)
        found.append(np.square(mean - b.mean).sum() + spread - 2 * np.sqrt(eigenvalues.clip(min=0)).sum())
    return float(np.std(found, ddof=1))


def extrapolated(rows: Tensor, reference: Gaussian, seed: int) -> float:
    """The distance that infinitely many samples would have (Chong and Forsyth 2020, section 3.2).

    From few samples the distance is too large, by nearly the inverse of their number: a line through the distances of
    random parts of them, from a half to all, over one by their number, is followed to zero. The reference is taken as
    it is; where its images are few, that is a bias which stays.

    Args:
        rows: features (n, D) of the samples.
        reference: what they are compared with.
        seed: draws the parts.

    Raises:
        TooFewImages: a half of the samples is not more than D; the distance is not so smooth then.
    """
    smallest = len(rows) // 2
    if smallest <= reference.width:
        raise TooFewImages(needed=2 * reference.width + 2, found=len(rows))
    counts = np.linspace(smallest, len(rows), PARTS, dtype=int)
    root = _root(reference.covariance)
    parts = [gaussian_of_subset(rows, int(count), seed + number) for number, count in enumerate(counts)]
    found = [_distance(reference, root, part) for part in parts]
    return float(np.polynomial.Polynomial.fit(1 / counts, found, 1)(0.0))


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root of a covariance."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


FRECHET = GaussianDistance("fd", "Fréchet distance", frechet_distance, standard_error, extrapolated)
SPATIAL_FRECHET = GaussianDistance(
    "sfid", "Spatial Fréchet distance (sFID)", frechet_distance, standard_error, features=SPATIAL
)

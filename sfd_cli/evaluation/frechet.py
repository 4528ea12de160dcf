"""The Fréchet distance between two sets of features."""

from __future__ import annotations

import numpy as np

from sfd_cli.evaluation.gaussian import Gaussian
from sfd_cli.evaluation.metric import GaussianDistance


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
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    middle = root @ b.covariance @ root
    eigenvalues = np.linalg.eigvalsh((middle + middle.T) / 2)
    trace_of_root = np.sqrt(eigenvalues.clip(min=0)).sum()
    shift = a.mean - b.mean
    distance = shift @ shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * trace_of_root
    return max(float(distance), 0.0)


FRECHET = GaussianDistance("fd", "Fréchet distance", frechet_distance)

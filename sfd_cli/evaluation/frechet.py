"""The Fréchet distance between two sets of features, from moments gathered in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sfd_cli.data import moments
from sfd_cli.errors import UserError

GATHERED = 4096


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian fitted to features: `mean` (D,), `covariance` (D, D), float64.

    `count` is how many images it stands for, None where a statistics file does not say.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None

    @property
    def width(self) -> int:
        """Features per image, D."""
        return int(self.mean.shape[0])


class Moments:
    """Moments of features that arrive in small batches, gathered in float64.

    Never holds all features, so the reference may be ImageNet.
    """

    def __init__(self, width: int) -> None:
        # One update of a 2048 x 2048 scatter costs as much as hundreds of rows, so rows are gathered first: in one
        # array, because small ones that live long between images that come and go would fragment the heap.
        self._waiting = np.empty((GATHERED, width))
        self._filled = 0
        self._absorbed = moments.Moments.none(width, scatter=True)

    @property
    def count(self) -> int:
        """Images seen."""
        return self._absorbed.count + self._filled

    def update(self, features: Tensor) -> None:
        """Add a batch of features (n, D)."""
        rows = features.detach().cpu().numpy()
        while len(rows):
            taken = rows[: len(self._waiting) - self._filled]
            self._waiting[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            rows = rows[len(taken) :]
            if self._filled == len(self._waiting):
                self._flush()

    def merged(self, other: Moments) -> Moments:
        """The moments of both sets together."""
        result = Moments(self._waiting.shape[1])
        for part in (self, other):
            part._flush()
            result._absorbed = result._absorbed.merge(part._absorbed)
        return result

    def gaussian(self) -> Gaussian:
        """The fitted Gaussian, with the unbiased covariance (divisor n - 1).

        Raises:
            UserError: fewer than two images have no covariance.
        """
        if self.count < 2:
            raise UserError(f"a covariance needs at least 2 images, found {self.count}")
        self._flush()
        return Gaussian(self._absorbed.mean, self._absorbed.covariance(correction=1), self.count)

    def _flush(self) -> None:
        rows, self._filled = self._waiting[: self._filled], 0
        if len(rows):
            self._absorbed = self._absorbed.merge(moments.Moments.of(rows, scatter=True))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared 2-Wasserstein distance between two Gaussians (Heusel et al. 2017, Equation 6).

    `|mu_a - mu_b|^2 + Tr(A) + Tr(B) - 2 Tr((AB)^(1/2))`. AB is similar to the symmetric positive
    semi-definite `A^(1/2) B A^(1/2)`, so the trace is the sum of the square roots of the latter's
    eigenvalues: two symmetric eigendecompositions in float64, which stay exact where covariances are
    singular (fewer images than features) and where a general matrix square root goes astray.

    Raises:
        UserError: the widths differ, or a value is not finite.
    """
    if a.width != b.width:
        raise UserError(f"features of width {a.width} cannot be compared with statistics of width {b.width}")
    if not all(np.isfinite(part).all() for part in (a.mean, a.covariance, b.mean, b.covariance)):
        raise UserError("the features or statistics hold values that are not finite; no distance can be computed")
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    middle = root @ b.covariance @ root
    eigenvalues = np.linalg.eigvalsh((middle + middle.T) / 2)
    trace_of_root = np.sqrt(eigenvalues.clip(min=0)).sum()
    shift = a.mean - b.mean
    distance = shift @ shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * trace_of_root
    return max(float(distance), 0.0)

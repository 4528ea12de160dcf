"""A Gaussian fitted to features, from moments computed in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from sfd_cli.data.moments import Moments
from sfd_cli.evaluation.reasons import TooFewImages

GATHERED = 4096


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian fitted to features: `mean` (D,), `covariance` (D, D), float64.

    `count` is how many images it stands for, None where a statistics file does not say.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None

    @classmethod
    def of(cls, moments: Moments) -> Self:
        """The Gaussian with these moments, which need the scatter matrix; unbiased covariance (divisor n - 1).

        Raises:
            TooFewImages: fewer than two images have no covariance.
        """
        if moments.count < 2:
            raise TooFewImages(needed=2, found=moments.count)
        return cls(moments.mean, moments.covariance(correction=1), moments.count)

    @classmethod
    def of_rows(cls, rows: Tensor) -> Self:
        """The Gaussian of features (n, D).

        Raises:
            TooFewImages: fewer than two.
        """
        moments = FeatureMoments(rows.shape[1])
        for part in rows.split(GATHERED):
            moments.update(part)
        return cls.of(moments.moments())

    @property
    def width(self) -> int:
        """Features per image, D."""
        return int(self.mean.shape[0])

    @property
    def is_finite(self) -> bool:
        """Whether no value is infinite or NaN."""
        return bool(np.isfinite(self.mean).all() and np.isfinite(self.covariance).all())


class FeatureMoments:
    """Moments of features that arrive in small batches; never holds all of them, so the reference may be ImageNet."""

    def __init__(self, width: int) -> None:
        # One update of a 2048 x 2048 scatter costs as much as hundreds of rows, so rows are gathered first: in one
        # array, because small ones that live long between images that come and go would fragment the heap.
        self._waiting = np.empty((GATHERED, width))
        self._filled = 0
        self._absorbed = Moments.none(width, scatter=True)

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
                self._absorb()

    def moments(self) -> Moments:
        """Moments of all features so far, with the scatter matrix."""
        self._absorb()
        return self._absorbed

    def _absorb(self) -> None:
        rows, self._filled = self._waiting[: self._filled], 0
        if len(rows):
            mean = rows.mean(axis=0)
            rows -= mean  # in place: `Moments.of` would copy them
            self._absorbed = self._absorbed.merge(Moments(len(rows), mean, rows.T @ rows))


def gaussian_of_subset(rows: Tensor, count: int, seed: int) -> Gaussian:
    """The Gaussian of `count` random rows of features (n, D); random because rows may be sorted by class."""
    moments = FeatureMoments(rows.shape[1])
    for chosen in torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count].split(GATHERED):
        moments.update(rows[chosen])
    return Gaussian.of(moments.moments())

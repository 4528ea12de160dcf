"""How well a linear classifier tells the classes from a stream at any time, in closed form.

Linear discriminant analysis of x_t = t x + (1 - t) noise: class means are t times those of x, and the covariance within
classes is t^2 times that of x plus (1 - t)^2, so that one decomposition serves all times and no noise is drawn to fit.
The covariance of x is shrunk towards a multiple of the identity as by Ledoit and Wolf (2004), without which it would be
singular at t = 1 for fewer images than channels. For Gaussian classes of one covariance it is the best there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from sfd_cli.diffusion.spectra import Directions

DRAWS = 4
"""Noise drawn for every image that is classified."""


@dataclass(frozen=True)
class LinearClassifier:
    """Discriminant analysis in the coordinates of principal directions, float64.

    Attributes:
        variances: of all images along each direction, (r,).
        means: of the classes, less that of all images, (K, r).
        priors: shares of the classes, (K,).
        shrinkage: how far the covariance within classes is shrunk, from 0 to 1.
        scale: the variance that it is shrunk to.
    """

    variances: Tensor
    means: Tensor
    priors: Tensor
    shrinkage: float
    scale: float

    @classmethod
    def of(cls, x: Tensor, labels: Tensor, classes: int, directions: Directions) -> Self:
        """Fitted to images x (n, D) with labels (n,), of which `directions` are."""
        members = torch.nn.functional.one_hot(labels, classes).double()
        counts = members.sum(dim=0)
        centred = x - directions.mean
        centres = (members.T @ centred) / counts.clamp(min=1)[:, None]
        means, priors = centres @ directions.basis, counts / len(x)
        spread = priors.sqrt()[:, None] * means
        squared = (directions.variances.square().sum() - 2 * (spread.square() @ directions.variances).sum()) + (
            spread @ spread.T
        ).square().sum()
        lengths = (centred - centres[labels]).square().sum(dim=1)
        shrinkage, scale = ledoit_wolf(lengths, float(squared), x.shape[1])
        return cls(directions.variances, means, priors, shrinkage, scale)

    def at(self, time: float) -> tuple[Tensor, Tensor]:
        """Weights (K, r) and offsets (K,) of the classes' scores at a time; a class without images has -inf.

        The covariance is diagonal less the covariance of the class means, which are few: inverted as by Woodbury.
        """
        kept = time**2 * (1 - self.shrinkage)
        diagonal = kept * self.variances + time**2 * self.shrinkage * self.scale + (1 - time) ** 2
        spread = self.priors.sqrt()[:, None] * self.means
        divided = spread / diagonal
        inner = torch.eye(len(spread)) - kept * divided @ spread.T
        means = time * self.means
        simple = means / diagonal
        weights = simple + kept * simple @ spread.T @ torch.linalg.solve(inner, divided)
        return weights, self.priors.log() - (weights * means).sum(dim=1) / 2


def ledoit_wolf(lengths: Tensor, squared: float, width: int) -> tuple[float, float]:
    """How far to shrink a covariance of `width` channels towards a multiple of the identity, and that multiple.

    Args:
        lengths: squared lengths of the centred images (n,).
        squared: sum of the squares of the covariance's entries.
        width: channels D.

    Raises:
        ValueError: nothing varies.
    """
    count = len(lengths)
    scale = float(lengths.mean()) / width
    if not scale > 0:
        raise ValueError("nothing varies within the classes")
    distance = squared / width - scale**2
    error = (float(lengths.square().mean()) - squared) / count / width
    return (min(max(error / distance, 0.0), 1.0) if distance > 0 else 1.0), scale


class Held(NamedTuple):
    """A fold: a classifier of all others, its own images' coordinates (m, r) and labels (m,), noise (DRAWS, m, k)."""

    classifier: LinearClassifier
    coordinates: Tensor
    labels: Tensor
    noise: Tensor
    rows: Tensor


class HeldOutAccuracy:
    """Every image classified by a classifier of the other folds' images.

    Args:
        x: images (n, D).
        labels: their classes (n,), from 0 to `classes` - 1.
        classes: how many there are.
        folds: fold of every image (n,), from 0.
        directions: of `directions_of_others`.
        generator: draws the noise; the same noise at all times.

    Raises:
        ValueError: a label is not a class, or there are fewer than two classes.
    """

    def __init__(
        self,
        x: Tensor,
        labels: Tensor,
        classes: int,
        folds: Tensor,
        directions: Sequence[Directions],
        generator: torch.Generator,
    ) -> None:
        if classes < 2:
            raise ValueError(f"{classes} classes cannot be told apart")
        if not bool(((labels >= 0) & (labels < classes)).all()):
            raise ValueError(f"labels {int(labels.min())} to {int(labels.max())}, but {classes} classes")
        self.count = len(x)
        self._held: list[Held] = []
        for fold, others in enumerate(directions):
            mine = folds == fold
            classifier = LinearClassifier.of(x[~mine], labels[~mine], classes, others)
            shape = (DRAWS, int(mine.sum()), min(classes, len(others.variances)))
            noise = torch.randn(shape, generator=generator, dtype=torch.float64)
            self._held.append(Held(classifier, others.project(x[mine]), labels[mine], noise, mine))

    def at(self, time: float) -> Tensor:
        """The share of the draws in which each image is classified rightly at a time, (n,) float64.

        Noise is drawn of the scores and not of the images: it has as many dimensions as there are classes.
        """
        right = torch.empty(self.count, dtype=torch.float64)
        for classifier, coordinates, labels, noise, rows in self._held:
            weights, offsets = classifier.at(time)
            factor = torch.linalg.qr(weights.T).R  # weights @ weights.T = factor.T @ factor
            scores = time * coordinates @ weights.T + offsets + (1 - time) * noise @ factor
            right[rows] = (scores.argmax(dim=-1) == labels).double().mean(dim=0)
        return right

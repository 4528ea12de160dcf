"""How early a stream stands out of its noise: spectra, Gaussian information, and the lead at which two draw level.

A stream x seen at time t is t x + (1 - t) noise, which tells as much as sqrt(gamma) x + noise with
gamma = (t / (1 - t))^2 = e^(2 l), l being its logit time. Of a Gaussian with eigenvalues lambda of its covariance
it tells sum ln(1 + gamma lambda) / 2 nats, and the best guess of x *resolves* the share
sum lambda gamma lambda / (1 + gamma lambda) / sum lambda of its variance. Information has no half, as it grows without
end; the resolved share goes from 0 to 1. A stream's *level* is the logit time at which half is resolved. The lead at
which two streams draw level is that of the semantics minus that of the textures: what a schedule leads by more than
that is what it puts semantics ahead. For streams that are equal but for their sizes it is the log of the size of the
textures over that of the semantics.

Eigenvalues of few images are too uneven, the large ones too large and the small ones too small, and more so in the
stream with more channels. So the variances here are those along the principal directions of *other* images, in folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import torch
from torch import Tensor

from sfd_cli.diffusion.latents import Streams

MOST_VALUES = 2048
"""Values of an image up to which covariances are taken of it as a whole: decomposing them takes the cube of it."""

REPLICATES = 200
HALVINGS = 60
# Logit times between which levels are looked for; the time there is 0 or 1 but for 2e-9.
FURTHEST = 20.0


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    standard_error: float

    @property
    def is_above_zero(self) -> bool:
        """By more than two standard errors."""
        return self.value > 2 * self.standard_error


@dataclass(frozen=True)
class Directions:
    """Principal directions of some images, float64.

    Attributes:
        mean: of the images, (D,).
        basis: orthonormal columns (D, r): all D directions, or those along which the images differ, whichever is less
            work.
        variances: of the images along each, (r,).
    """

    mean: Tensor
    basis: Tensor
    variances: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Self:
        """Those of the images x (n, D).

        Raises:
            ValueError: a value is not finite.
        """
        if not bool(x.isfinite().all()):
            raise ValueError("has values that are not finite")
        mean = x.mean(dim=0, dtype=torch.float64)
        centred = x - mean
        count, width = x.shape
        if width <= max(count, MOST_VALUES):
            variances, basis = torch.linalg.eigh(centred.T @ centred / count)
            return cls(mean, basis, variances.clamp(min=0))
        variances, rows = torch.linalg.eigh(centred @ centred.T / count)
        differ = variances > variances[-1] * torch.finfo(torch.float64).eps * count
        variances, rows = variances[differ], rows[:, differ]
        return cls(mean, centred.T @ rows / (count * variances).sqrt(), variances)

    def project(self, x: Tensor) -> Tensor:
        """Coordinates (n, r) of images (n, D), less the mean."""
        return (x - self.mean) @ self.basis


def directions_of_others(x: Tensor, folds: Tensor) -> list[Directions]:
    """For every fold the directions of the images x (n, D) of all other folds; `folds` (n,) counts from 0."""
    return [Directions.of(x[folds != fold]) for fold in range(int(folds.max()) + 1)]


@dataclass(frozen=True)
class Spectrum:
    """Variances of a stream along directions that its images did not choose.

    Args:
        squares: of every image's coordinates, (n, d) float64.
        copies: how often every direction is there: once, or at every position of the grid.

    Raises:
        ValueError: the stream does not vary.
    """

    squares: Tensor
    copies: int = 1

    def __post_init__(self) -> None:
        if not bool(self.squares.sum() > 0):
            raise ValueError("is the same for all images")

    @classmethod
    def of_whole(cls, x: Tensor, folds: Tensor, directions: Sequence[Directions]) -> Self:
        """That of whole images x (n, D), along the directions of `directions_of_others`, all D of them."""
        squares = torch.empty(x.shape, dtype=torch.float64)
        for fold, others in enumerate(directions):
            squares[folds == fold] = others.project(x[folds == fold]).square()
        return cls(squares)

    @classmethod
    def of_positions(cls, x: Tensor, folds: Tensor) -> Self:
        """That of a position, averaged over all, for images x (n, C, h, w) too large to be taken as a whole.

        What positions tell of one another is left out, so that everything resolves later than it does.
        """
        tokens = (x - x.mean(dim=0)).flatten(2).mT  # (n, h w, C)
        squares = torch.empty((len(x), x.shape[1]), dtype=torch.float64)
        for fold in folds.unique():
            others = Directions.of(tokens[folds != fold].flatten(0, 1))
            squares[folds == fold] = (
                others.project(tokens[folds == fold].flatten(0, 1))
                .square()
                .unflatten(0, (-1, tokens.shape[1]))
                .mean(dim=1)
            )
        return cls(squares, tokens.shape[1])

    @cached_property
    def values(self) -> Tensor:
        """Variances (d,), the largest first."""
        return self.squares.mean(dim=0).sort(descending=True).values

    def information(self, logits: Tensor) -> Tensor:
        """Nats that a Gaussian of this spectrum shows at logit times (m,): (m,)."""
        return self.copies * (gamma_of(logits)[:, None] * self.values).log1p().sum(dim=1) / 2

    def resolved(self, logits: Tensor) -> Tensor:
        """The share of the variance that is resolved at logit times (m,): (m,)."""
        return resolved_share(self.values, logits)

    def resampled(self, weights: Tensor) -> Tensor:
        """Variances (b, d) of resampled images, weights (b, n).

        Along the same directions: to first order the sum of any function of the eigenvalues changes as if they turned.
        """
        return weights @ self.squares


@dataclass(frozen=True)
class Levels:
    """Logit times at which either stream has resolved a share of its variance, and their difference.

    Attributes:
        streams: of each stream.
        lead: semantics minus textures, the lead at which they draw level.
    """

    streams: Streams[Estimate]
    lead: Estimate

    @classmethod
    def of(cls, spectra: Streams[Spectrum], share: float, clusters: Tensor, generator: torch.Generator) -> Self:
        """With standard errors of a bootstrap over clusters of images, the same ones for both streams.

        Args:
            spectra: of both streams.
            share: of the variance.
            clusters: a number for every image (n,), from 0, equal for those that are alike: they are drawn together.
            generator: draws them.

        Raises:
            ValueError: the streams are of different numbers of images, or `share` is not between 0 and 1.
        """
        texture, semantic = (len(spectrum.squares) for spectrum in spectra)
        if not texture == semantic == len(clusters):
            raise ValueError(f"{texture} images of textures, {semantic} of semantics, and {len(clusters)} clusters")
        weights = resampling_weights(clusters, generator)
        drawn = Streams(*(level_of(spectrum.resampled(weights), share) for spectrum in spectra))
        found = Streams(*(float(level_of(spectrum.values, share)) for spectrum in spectra))
        errors = Streams(*(float(levels.std()) for levels in drawn))
        lead = Estimate(found.semantic - found.texture, float((drawn.semantic - drawn.texture).std()))
        return cls(Streams(*map(Estimate, found, errors)), lead)


def gamma_of(logits: Tensor) -> Tensor:
    """Signal-to-noise ratios (t / (1 - t))^2 at logit times."""
    return (2 * logits).exp()


def resolved_share(values: Tensor, logits: Tensor) -> Tensor:
    """The share of the variance that is resolved, (...), of eigenvalues (..., d) at logit times (...)."""
    heard = gamma_of(logits)[..., None] * values
    return (values * heard / (1 + heard)).sum(dim=-1) / values.sum(dim=-1)


def level_of(values: Tensor, share: float) -> Tensor:
    """Logit times (...) at which eigenvalues (..., d), not all 0, have resolved `share` of their variance.

    Raises:
        ValueError: `share` is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"a share of {share} is not between 0 and 1")
    low = torch.full(values.shape[:-1], -FURTHEST, dtype=values.dtype)
    high = -low
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        is_before = resolved_share(values, middle) < share
        low, high = torch.where(is_before, middle, low), torch.where(is_before, high, middle)
    return high


def resampling_weights(clusters: Tensor, generator: torch.Generator) -> Tensor:
    """Weight of every image in REPLICATES resamplings of clusters (n,), numbered from 0: (b, n) float64, summing to 1.

    As many clusters are drawn as there are, each with all of its images.
    """
    count = int(clusters.max()) + 1
    drawn = torch.randint(count, (REPLICATES, count), generator=generator)
    times = torch.zeros((REPLICATES, count), dtype=torch.float64)
    times.scatter_add_(1, drawn, torch.ones(drawn.shape, dtype=torch.float64))
    weights = times[:, clusters]
    return weights / weights.sum(dim=1, keepdim=True)

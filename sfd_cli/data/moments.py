"""Mean and spread of values that are never all in memory, gathered batch by batch and shard by shard."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np


@dataclass(frozen=True)
class Moments:
    """Count, mean and squared deviations of D channels, float64, merged as by Chan, Golub and LeVeque (1979).

    Attributes:
        count: values of each channel.
        mean: (D,).
        deviations: sum of squared deviations from the mean, (D,); or the scatter matrix, the sum of their outer
            products, (D, D).
    """

    count: int
    mean: np.ndarray
    deviations: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, channel_axis: int = -1, *, scatter: bool = False) -> Moments:
        """Moments over all axes but `channel_axis`, with the scatter matrix if `scatter`."""
        channels = np.moveaxis(values, channel_axis, 0).reshape(values.shape[channel_axis], -1).astype(np.float64)
        mean = channels.mean(axis=1)
        channels -= mean[:, None]
        deviations = channels @ channels.T if scatter else np.square(channels, channels).sum(axis=1)
        return cls(channels.shape[1], mean, deviations)

    @classmethod
    def none(cls, width: int, *, scatter: bool = False) -> Moments:
        """Moments of no values."""
        return cls(0, np.zeros(width), np.zeros((width, width) if scatter else width))

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of values together."""
        count = self.count + other.count
        if not count:
            return self
        shift = other.mean - self.mean
        between = np.square(shift) if self.deviations.ndim == 1 else np.outer(shift, shift)
        return Moments(
            count,
            self.mean + shift * (other.count / count),
            self.deviations + other.deviations + between * (self.count * other.count / count),
        )

    @classmethod
    def merged(cls, parts: Iterable[Moments]) -> Moments:
        """Moments of all parts together, merged in their order."""
        return reduce(cls.merge, parts)

    @property
    def std(self) -> np.ndarray:
        """Population standard deviation, (D,)."""
        squares = self.deviations if self.deviations.ndim == 1 else self.deviations.diagonal()
        return np.sqrt(squares / self.count)

    def covariance(self, correction: int = 0) -> np.ndarray:
        """The covariance (D, D), with the divisor count - `correction`; needs the scatter matrix."""
        if self.deviations.ndim != 2:
            raise ValueError("the covariance needs the scatter matrix")
        return self.deviations / (self.count - correction)

    def to_array(self) -> np.ndarray:
        """Rows count, mean, deviations: float64 (3, D), or (D + 2, D) with a scatter matrix."""
        return np.vstack([np.full_like(self.mean, self.count), self.mean, self.deviations])

    @classmethod
    def from_array(cls, array: np.ndarray) -> Moments:
        """The inverse of `to_array`; one channel comes back without a scatter matrix."""
        return cls(int(array[0, 0]), array[1], array[2] if len(array) == 3 else array[2:])

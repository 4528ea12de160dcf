"""Per-channel mean and standard deviation, gathered batch by batch and shard by shard."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np


@dataclass(frozen=True)
class ChannelMoments:
    """How many values each channel has, their mean, and the sum of squared deviations from it (float64, (C,)).

    Merging is Chan, Golub and LeVeque's pairwise update (1979): no cancellation, one pass over the data.
    """

    count: int
    mean: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, channel_axis: int) -> ChannelMoments:
        """Moments of an array of any shape over all axes but `channel_axis`."""
        channels = np.moveaxis(values, channel_axis, 0).reshape(values.shape[channel_axis], -1).astype(np.float64)
        mean = channels.mean(axis=1)
        return cls(channels.shape[1], mean, np.square(channels - mean[:, None]).sum(axis=1))

    def merge(self, other: ChannelMoments) -> ChannelMoments:
        """Moments of both sets of values together."""
        count = self.count + other.count
        shift = other.mean - self.mean
        return ChannelMoments(
            count,
            self.mean + shift * (other.count / count),
            self.squares + other.squares + np.square(shift) * (self.count * other.count / count),
        )

    @classmethod
    def merged(cls, parts: Iterable[ChannelMoments]) -> ChannelMoments:
        """Moments of all parts together, merged in the order given."""
        return reduce(cls.merge, parts)

    @property
    def std(self) -> np.ndarray:
        """Population standard deviation of every channel, (C,)."""
        return np.sqrt(self.squares / self.count)

    def to_array(self) -> np.ndarray:
        """Rows count, mean, squares: (3, C) float64, for keeping in a file."""
        return np.stack([np.full_like(self.mean, self.count), self.mean, self.squares])

    @classmethod
    def from_array(cls, array: np.ndarray) -> ChannelMoments:
        """The inverse of `to_array`."""
        return cls(int(array[0, 0]), array[1], array[2])

"""The order in which a trainer sees images: a function of the seed and the step, so a resumed run needs no state."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


class EpochSampler:
    """Batches that visit every image once per epoch, in an order and with flips that differ from epoch to epoch.

    A batch may hold the end of one epoch and the start of the next, so no image is left out whatever the batch size.

    Args:
        count: images in the store.
        batch_size: images of a global batch, over all processes.
        seed: another seed, another order.
        indices: positions in the store to use, (n,); all of them where it is left out.
        flips: views of every image: 2 (as is, flipped), drawn equally often, or 1 (as is); the order is the same.

    Raises:
        ValueError: there is nothing to sample, a position is outside the store, or `flips` is neither 1 nor 2.
    """

    def __init__(
        self, count: int, batch_size: int, seed: int, indices: np.ndarray | None = None, flips: int = 2
    ) -> None:
        self.indices = np.arange(count) if indices is None else np.asarray(indices, np.int64)
        if not len(self.indices) or batch_size < 1:
            raise ValueError(f"batch_size {batch_size} makes no batches of {len(self.indices)} images")
        if self.indices.min() < 0 or self.indices.max() >= count:
            raise ValueError(f"indices {self.indices.min()} to {self.indices.max()} of a store of {count} images")
        if flips not in (1, 2):
            raise ValueError(f"{flips} flips of every image; there are 1 (as is) or 2 (as is, flipped)")
        self.flips = flips
        self.batch_size = batch_size
        self.seed = seed
        # A batch needs the order of its own epoch and, where it straddles one, of the next.
        self._epoch = lru_cache(maxsize=2)(self._shuffle)

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The global batch of optimiser step `step`, counted from 0.

        Returns:
            Positions in the store and flips (0 as is, 1 mirrored), both int64 (batch_size,).
        """
        first = step * self.batch_size
        epochs, places = np.divmod(np.arange(first, first + self.batch_size), len(self.indices))
        batch = np.empty((2, self.batch_size), np.int64)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            batch[:, here] = self._epoch(epoch)[:, places[here]]
        return batch[0], batch[1]

    def _shuffle(self, epoch: int) -> np.ndarray:
        """Positions and flips of one epoch, in order: int64 (2, n)."""
        generator = np.random.default_rng((self.seed, epoch))
        order = generator.permutation(self.indices)
        return np.stack((order, generator.integers(0, self.flips, len(order))))

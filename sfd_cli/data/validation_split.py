"""Which images a trainer keeps out, to report on."""

from __future__ import annotations

import numpy as np


def validation_split(count: int, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions 0 .. count - 1 as (training, held out), the latter evenly spread so that every class is in it.

    At least one position is held out and at least one is left.

    Raises:
        ValueError: fewer than two positions.
    """
    if count < 2:
        raise ValueError(f"{count} images cannot be split into training and held-out ones")
    held = min(max(round(count * fraction), 1), count - 1)
    positions = (np.arange(held) * count) // held
    mask = np.zeros(count, bool)
    mask[positions] = True
    return np.flatnonzero(~mask), np.flatnonzero(mask)

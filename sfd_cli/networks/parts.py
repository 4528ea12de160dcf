"""Images through a network a part at a time, where what it keeps of them grows with their area."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

PIXELS_AT_ONCE = 1 << 21
"""Pixels that a texture compressor sees in one call: 32 images of 256 x 256, 8 of 512 x 512.

Of so many an encoder 128 channels wide at the finest level has layers of 2^28 numbers, 1.1 GB in float32, and some of
them at once; by arithmetic, not measured. Above 2^31 numbers kernels would need 64-bit indices."""


def images_at_once(side: int) -> int:
    """Square images of this side, pixels, that a texture compressor sees in one call."""
    return max(PIXELS_AT_ONCE // side**2, 1)


def by_parts(network: Callable[[Tensor], Sequence[Tensor]], images: Tensor) -> tuple[Tensor, ...]:
    """What a network makes of square images (n, 3, S, S), `images_at_once` in one call: tensors (n, ...).

    So few images as fit into one call go through it as they are, to the same bits as without this. Of more every call
    has as many, the last one with blank images behind them, for kernels and their rounding go by that number.
    """
    size, count = images_at_once(images.shape[-1]), len(images)
    if count <= size:
        return tuple(network(images))
    blank = images.new_zeros(-count % size, *images.shape[1:])
    parts = [network(part) for part in torch.cat([images, blank]).split(size)]
    return tuple(torch.cat(pieces)[:count] for pieces in zip(*parts, strict=True))

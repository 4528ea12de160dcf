"""Principal directions of a covariance, the same ones for equal values."""

from __future__ import annotations

import torch
from torch import Tensor

TIE = 1e-6
"""Entries that differ by less, relatively, are equal."""


def leading_directions(covariance: Tensor, count: int) -> Tensor:
    """The `count` orthonormal directions (count, D) of largest variance, largest first, of a covariance (D, D) float64.

    A direction's sign is free; its largest entry is made positive, so that equal values give equal directions. Of equal
    ones it is the first: where images are mirrored half the directions are antisymmetric, with two largest entries of
    opposite signs, between which rounding must not choose.
    """
    _, vectors = torch.linalg.eigh(covariance)
    leading = vectors.flip(1)[:, :count].T
    sizes = leading.abs()
    is_largest = sizes >= sizes.amax(1, keepdim=True) * (1 - TIE)
    return leading * leading.gather(1, is_largest.int().argmax(1, keepdim=True)).sign()

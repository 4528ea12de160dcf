"""Semantic latents as colours: three principal components as red, green and blue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np


@dataclass(frozen=True)
class Palette:
    """Directions of semantic latents and the range of colour along each.

    Attributes:
        mean: (C_s,).
        directions: (C_s, k), k at most 3, orthonormal, the strongest first.
        low: (k,), what is shown black along each direction.
        high: (k,), what is shown full.
    """

    mean: np.ndarray
    directions: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, latents: np.ndarray) -> Self:
        """The principal components of latents (n, C_s, h, w), and their ranges, 2nd to 98th percentile."""
        channels = latents.shape[1]
        tokens = np.moveaxis(latents, 1, -1).reshape(-1, channels).astype(np.float64)
        mean = tokens.mean(axis=0)
        _, vectors = np.linalg.eigh(np.cov(tokens, rowvar=False).reshape(channels, channels))
        directions = vectors[:, ::-1][:, :3]
        # An eigenvector's sign is arbitrary and differs between libraries; a fixed one makes equal runs look equal.
        strongest = directions[np.abs(directions).argmax(axis=0), np.arange(directions.shape[1])]
        directions = directions * np.where(strongest < 0, -1.0, 1.0)
        low, high = np.percentile((tokens - mean) @ directions, [2, 98], axis=0)
        return cls(mean, directions, low, high)

    def paint(self, latents: np.ndarray) -> np.ndarray:
        """Colours, float32 (..., h, w, 3) in [0, 1], of latents (..., C_s, h, w); of fewer channels the rest is 0.5."""
        projected = (np.moveaxis(latents, -3, -1).astype(np.float64) - self.mean) @ self.directions
        scaled = ((projected - self.low) / np.maximum(self.high - self.low, 1e-12)).clip(0, 1)
        colours = np.full((*scaled.shape[:-1], 3), 0.5, dtype=np.float32)
        colours[..., : scaled.shape[-1]] = scaled
        return colours

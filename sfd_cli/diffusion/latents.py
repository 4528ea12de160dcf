"""The composite latent: which channels are whose, and the scale on which the network sees them (arXiv 2512.04926).

A composite latent `x = concat(z, s)` holds the texture channels first and the semantic channels last, on one grid, each
normalised by the mean and standard deviation of the training set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Generic, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Streams(NamedTuple, Generic[T]):
    """One value for each stream of a composite latent."""

    texture: T
    semantic: T


@dataclass(frozen=True)
class LatentSpace:
    """Layout and scale of a composite latent; a value that can be compared, saved as JSON, and asked to do arithmetic.

    Attributes:
        texture: texture channels C_z.
        semantic: semantic channels C_s; 0 without semantics.
        grid: side h = w of the latent, latent pixels.
        mean: of every channel over the training set, textures first; empty where it is not known.
        std: likewise, the standard deviation.
    """

    texture: int
    semantic: int
    grid: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
            if len(getattr(self, name)) not in (0, self.channels):
                raise ValueError(f"{name} has {len(getattr(self, name))} values, the latent {self.channels} channels")

    @property
    def channels(self) -> int:
        """C = C_z + C_s."""
        return self.texture + self.semantic

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        return self.channels, self.grid, self.grid

    @property
    def is_scaled(self) -> bool:
        """Whether mean and standard deviation are known."""
        return bool(self.mean and self.std)

    @property
    def statistics(self) -> dict[str, list[float]]:
        """`mean` and `std` as plain lists, for JSON."""
        return {"mean": list(self.mean), "std": list(self.std)}

    def scaled(self, mean: Sequence[float], std: Sequence[float]) -> Self:
        """The same layout on another scale."""
        return replace(self, mean=tuple(mean), std=tuple(std))

    def join(self, raw: Streams[Tensor]) -> Tensor:
        """Raw streams (B, C_z, h, w) and (B, C_s, h, w) -> the normalised composite (B, C, h, w) float32."""
        parts = [part.float() for part, width in zip(raw, (self.texture, self.semantic), strict=True) if width]
        mean, std = self._scale(parts[0].device)
        return (torch.cat(parts, dim=1) - mean) / std

    def split(self, x: Tensor) -> Streams[Tensor]:
        """The normalised composite (B, C, h, w) -> raw streams; the inverse of `join` but for rounding."""
        mean, std = self._scale(x.device)
        return self.views(x * std + mean)

    def views(self, x: Tensor) -> Streams[Tensor]:
        """Texture and semantic channels of x (B, C, ...), as they are; either may have no channels."""
        return Streams(x[:, : self.texture], x[:, self.texture :])

    def spread(self, values: Streams[Tensor]) -> Tensor:
        """One value per image and stream, (B,) each, over the channels: (B, C, 1, 1)."""
        texture = values.texture[:, None].expand(-1, self.texture)
        semantic = values.semantic[:, None].expand(-1, self.semantic)
        return torch.cat((texture, semantic), dim=1)[:, :, None, None]

    def difference(self, other: LatentSpace) -> str | None:
        """The first thing in which `other` is another latent, for a message; None where both are one.

        A scale that is not known differs from none.
        """
        for name in ("grid", "texture", "semantic"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                return f"{name} {theirs} instead of {ours}"
        if self.is_scaled and other.is_scaled and (self.mean, self.std) != (other.mean, other.std):
            return "other statistics"
        return None

    def _scale(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if not self.is_scaled:
            raise ValueError("this latent space has no statistics, so that raw and normalised latents cannot be told")
        return _scale(self, device)


@lru_cache(maxsize=32)
def _scale(space: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and std (C, 1, 1) float32 on a device, copied there once: training asks in every step."""
    with torch.inference_mode(False):
        mean, std = (torch.tensor(values, dtype=torch.float32, device=device) for values in (space.mean, space.std))
    return mean[:, None, None], std[:, None, None]

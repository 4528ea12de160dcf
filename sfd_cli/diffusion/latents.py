"""The composite latent: which channels belong to which stream, and how they are normalised (arXiv 2512.04926).

A composite latent `x = concat(z, s)` holds the texture channels first and the semantic channels last, on one grid, each
normalised by the mean and standard deviation of the training set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Generic, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Streams(NamedTuple, Generic[T]):
    """One value for each stream of a composite latent."""

    texture: T
    semantic: T


@dataclass(frozen=True)
class LatentSpace:
    """Layout and statistics of a composite latent.

    Attributes:
        texture: texture channels C_z.
        semantic: semantic channels C_s; 0 without semantics.
        grid: side h = w of the latent, latent pixels.
        mean: mean of every channel over the training set, textures first; empty where it is not known.
        std: standard deviation, likewise.

    Raises:
        ValueError: `mean` or `std` does not have one value per channel.
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
                raise ValueError(f"{name} has {len(getattr(self, name))} values for {self.channels} channels")

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
        """The same layout with other statistics."""
        return replace(self, mean=tuple(mean), std=tuple(std))

    def join(self, raw: Streams[Tensor]) -> Tensor:
        """Concatenate and normalise: raw streams (B, C_z, h, w) and (B, C_s, h, w) -> composite (B, C, h, w) float32.

        The semantic stream is ignored where the space has no semantic channels.

        Raises:
            ValueError: the statistics are not known.
        """
        parts = [part.float() for part, width in zip(raw, (self.texture, self.semantic), strict=True) if width]
        mean, std = self._scale(parts[0].device)
        return (torch.cat(parts, dim=1) - mean) / std

    def split(self, x: Tensor) -> Streams[Tensor]:
        """The inverse of `join`, up to rounding: composite (B, C, h, w) -> raw streams.

        Raises:
            ValueError: the statistics are not known.
        """
        mean, std = self._scale(x.device)
        return self.views(x * std + mean)

    def views(self, x: Tensor) -> Streams[Tensor]:
        """Views of the texture and the semantic channels of x (B, C, ...); either may have no channels."""
        return Streams(x[:, : self.texture], x[:, self.texture :])

    def spread(self, values: Streams[Tensor]) -> Tensor:
        """Repeat one value per image and stream, (B,) each, over the channels of the stream: (B, C, 1, 1)."""
        texture = values.texture[:, None].expand(-1, self.texture)
        semantic = values.semantic[:, None].expand(-1, self.semantic)
        return torch.cat((texture, semantic), dim=1)[:, :, None, None]

    def difference(self, other: LatentSpace) -> str | None:
        """What `other` has instead of this space's value, for a message; None where the two agree.

        Statistics are compared only where both are known.
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
            raise ValueError("the statistics of this latent space are not known")
        return _scale(self, device)


@lru_cache(maxsize=32)
def _scale(space: LatentSpace, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and std (C, 1, 1) float32 on `device`; cached, because training needs them in every step."""
    with torch.inference_mode(False):  # a tensor made in inference mode could not be used in training later
        mean, std = (torch.tensor(values, dtype=torch.float32, device=device) for values in (space.mean, space.std))
    return mean[:, None, None], std[:, None, None]

"""What an extractor is: a network whose features of images are compared, of one kind or more in one pass."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from sfd_cli.devices import float32_products

POOLED, SPATIAL, LOGITS, EMBEDDING = "pooled", "spatial", "logits", "embedding"
"""Kinds of features."""


@dataclass(frozen=True)
class Extractor:
    """Images to features of one or more kinds, in one pass of one network.

    Attributes:
        name: of the network; it is in the names of scores.
        widths: kind of features -> numbers per image, D.
        device: where it computes.
        compute: uint8 images (n, 3, H, W) on `device` to float features (n, D) of at least these kinds.
        identity: says in `fid.json` which weights were used.
    """

    name: str
    widths: dict[str, int]
    device: torch.device
    compute: Callable[[Tensor], dict[str, Tensor]]
    identity: dict[str, Any] = field(default_factory=dict)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Features (n, D) of each kind, float32 on the CPU and dense, of uint8 images (n, 3, H, W).

        Without TF32, which convolutions are in by PyTorch's default: a score shall not depend on the device.
        """
        with torch.inference_mode(), float32_products(self.device, tf32=False):
            found = self.compute(images.to(self.device))
        return {kind: found[kind].float().cpu().contiguous() for kind in self.widths}

    @classmethod
    def of(cls, name: str, width: int, device: torch.device, compute: Callable[[Tensor], Tensor]) -> Self:
        """An extractor of one kind of features, `pooled`: `compute` maps images to (n, width)."""
        return cls(name, {POOLED: width}, device, lambda images: {POOLED: compute(images)})

    def only(self, kinds: Collection[str]) -> Self:
        """The same network for some of its kinds of features."""
        return replace(self, widths={kind: width for kind, width in self.widths.items() if kind in kinds})

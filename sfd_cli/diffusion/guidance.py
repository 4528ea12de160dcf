"""Guided velocity fields: classifier-free guidance and AutoGuidance, with a scale and an interval per stream.

Both move a better prediction away from a worse one, `v = worse + scale * (better - worse)`, where a stream's own
time lies inside the guidance interval (arXiv 2404.07724); outside it the better prediction is taken as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfd_cli.diffusion.objective import per_channel
from sfd_cli.diffusion.schedule import Streams

VelocityField = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x (B, C, h, w), t_texture (B,), t_semantic (B,), labels (B,)) -> velocity (B, C, h, w)."""


@dataclass(frozen=True)
class GuidanceScale:
    """How strongly, and when, each stream is guided.

    Attributes:
        texture: scale of the texture channels; 1 leaves them unguided, 0 gives the worse prediction.
        semantic: scale of the semantic channels.
        interval: first and last time, both included, at which a stream is guided; each by its own time.
    """

    texture: float
    semantic: float
    interval: tuple[float, float] = (0.0, 1.0)

    def at(self, t_texture: Tensor, t_semantic: Tensor) -> Streams[Tensor] | None:
        """Scale of each image and stream, (B,) each, at its times; None where nothing is guided at all.

        A limited interval asks the device for the answer: one wait that can save a network call.
        """
        if self.texture == self.semantic == 1:
            return None
        scale = Streams(self._inside(t_texture, self.texture), self._inside(t_semantic, self.semantic))
        if self.interval != (0.0, 1.0) and bool((torch.stack(scale) == 1).all()):
            return None
        return scale

    def of_moving(self, rates: Streams[float]) -> GuidanceScale:
        """The scales where streams move at `rates`: 1 for a frozen one."""
        texture, semantic = (
            scale if rate else 1.0 for scale, rate in zip((self.texture, self.semantic), rates, strict=True)
        )
        return replace(self, texture=texture, semantic=semantic)

    def _inside(self, t: Tensor, scale: float) -> Tensor:
        # Clamped because an adaptive solver looks past time 1, where an interval that ends at 1 must not end.
        first, last = self.interval
        return torch.where((t.clamp(0, 1) >= first) & (t.clamp(0, 1) <= last), scale, 1.0).to(t.dtype)


@dataclass(frozen=True)
class ClassifierFreeGuidance:
    """A velocity field guided away from its own null class (arXiv 2207.12598), both in one network call."""

    velocity: VelocityField
    null_label: int
    scale: GuidanceScale
    semantic_channels: int

    def __call__(self, x: Tensor, t_texture: Tensor, t_semantic: Tensor, labels: Tensor) -> Tensor:
        """See `VelocityField`."""
        scale = self.scale.at(t_texture, t_semantic)
        if scale is None:
            return self.velocity(x, t_texture, t_semantic, labels)
        null = torch.full_like(labels, self.null_label)
        both = self.velocity(x.repeat(2, 1, 1, 1), t_texture.repeat(2), t_semantic.repeat(2), torch.cat((labels, null)))
        conditional, unconditional = both.chunk(2)
        return extrapolate(conditional, unconditional, scale, self.semantic_channels)


@dataclass(frozen=True)
class AutoGuidance:
    """A velocity field guided away from a weaker model's, given the same label (arXiv 2406.02507)."""

    velocity: VelocityField
    guide: VelocityField
    scale: GuidanceScale
    semantic_channels: int

    def __call__(self, x: Tensor, t_texture: Tensor, t_semantic: Tensor, labels: Tensor) -> Tensor:
        """See `VelocityField`."""
        better = self.velocity(x, t_texture, t_semantic, labels)
        scale = self.scale.at(t_texture, t_semantic)
        if scale is None:
            return better
        return extrapolate(better, self.guide(x, t_texture, t_semantic, labels), scale, self.semantic_channels)


def guide_moving(velocity: VelocityField, rates: Streams[float]) -> VelocityField:
    """`velocity` where streams move at `rates`: what a frozen one would be guided by is not asked for in vain."""
    if isinstance(velocity, ClassifierFreeGuidance | AutoGuidance):
        return replace(velocity, scale=velocity.scale.of_moving(rates))
    return velocity


def extrapolate(better: Tensor, worse: Tensor, scale: Streams[Tensor], semantic_channels: int) -> Tensor:
    """`worse + scale * (better - worse)` (B, C, h, w), with a scale (B,) per stream; exactly `better` where it is 1."""
    factor = per_channel(scale, better.shape[1], semantic_channels)
    return torch.where(factor == 1, better, worse + factor * (better - worse))

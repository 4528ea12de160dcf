"""Guided velocity fields: classifier-free guidance and AutoGuidance, with a scale per stream and an interval.

Both extrapolate from a worse prediction w through a better one m, `v = w + scale * (m - w)`, where a stream's own time
lies inside the guidance interval (arXiv 2404.07724). Outside the interval the velocity is the better prediction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfd_cli.diffusion.conditions import Conditions
from sfd_cli.diffusion.latents import LatentSpace, Streams

VelocityField = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x (B, C, h, w), t_texture (B,), t_semantic (B,), rows (B,) of the conditions) -> velocity (B, C, h, w)."""


@dataclass(frozen=True)
class GuidanceScale:
    """How strongly, and when, each stream is guided.

    Attributes:
        texture: scale of the texture channels; 1 is no guidance, 0 gives the worse prediction.
        semantic: scale of the semantic channels.
        interval: first and last time at which a stream is guided, both included, compared with its own time.
        channels: how many channels of the composite latent are guided, the first ones; None: all.
    """

    texture: float
    semantic: float
    interval: tuple[float, float] = (0.0, 1.0)
    channels: int | None = None

    def at(self, t_texture: Tensor, t_semantic: Tensor) -> Streams[Tensor] | None:
        """Scale of each image and stream, (B,) each, at its times; None where no image is guided.

        With a limited interval this waits for the device, which can save a network call.
        """
        if self.texture == self.semantic == 1:
            return None
        scale = Streams(self._inside(t_texture, self.texture), self._inside(t_semantic, self.semantic))
        if self.interval != (0.0, 1.0) and bool((torch.stack(scale) == 1).all()):
            return None
        return scale

    def of_moving(self, rates: Streams[float]) -> GuidanceScale:
        """The scales where streams move at `rates`: 1 for a frozen stream."""
        texture, semantic = (
            scale if rate else 1.0 for scale, rate in zip((self.texture, self.semantic), rates, strict=True)
        )
        return replace(self, texture=texture, semantic=semantic)

    def _inside(self, t: Tensor, scale: float) -> Tensor:
        # Clamped because an adaptive solver evaluates past time 1, and an interval up to 1 includes what lies beyond.
        first, last = self.interval
        return torch.where((t.clamp(0, 1) >= first) & (t.clamp(0, 1) <= last), scale, 1.0).to(t.dtype)


@dataclass(frozen=True)
class ClassifierFreeGuidance:
    """A velocity field guided away from its own unconditional prediction (arXiv 2207.12598), both in one network call.

    Attributes:
        velocity: a network that was trained with dropped labels.
        conditions: the rows that it knows.
        scale: how strongly, and when.
        space: which channels are whose.
    """

    velocity: VelocityField
    conditions: Conditions
    scale: GuidanceScale
    space: LatentSpace

    def __call__(self, x: Tensor, t_texture: Tensor, t_semantic: Tensor, rows: Tensor) -> Tensor:
        """See `VelocityField`."""
        scale = self.scale.at(t_texture, t_semantic)
        if scale is None:
            return self.velocity(x, t_texture, t_semantic, rows)
        both_rows = torch.cat((rows, self.conditions.unconditional(rows)))
        both = self.velocity(x.repeat(2, 1, 1, 1), t_texture.repeat(2), t_semantic.repeat(2), both_rows)
        conditional, unconditional = both.chunk(2)
        return extrapolate(conditional, unconditional, scale, self.space, self.scale.channels)


@dataclass(frozen=True)
class AutoGuidance:
    """A velocity field guided away from a weaker model's under the same condition (arXiv 2406.02507).

    Attributes:
        velocity: the better model.
        guide: the weaker model.
        scale: how strongly, and when.
        space: which channels are whose.
    """

    velocity: VelocityField
    guide: VelocityField
    scale: GuidanceScale
    space: LatentSpace

    def __call__(self, x: Tensor, t_texture: Tensor, t_semantic: Tensor, rows: Tensor) -> Tensor:
        """See `VelocityField`."""
        better = self.velocity(x, t_texture, t_semantic, rows)
        scale = self.scale.at(t_texture, t_semantic)
        if scale is None:
            return better
        worse = self.guide(x, t_texture, t_semantic, rows)
        return extrapolate(better, worse, scale, self.space, self.scale.channels)


def guide_moving(velocity: VelocityField, rates: Streams[float]) -> VelocityField:
    """`velocity` where streams move at `rates`: guidance is skipped for frozen streams, whose velocity is discarded."""
    if isinstance(velocity, ClassifierFreeGuidance | AutoGuidance):
        return replace(velocity, scale=velocity.scale.of_moving(rates))
    return velocity


def extrapolate(
    better: Tensor, worse: Tensor, scale: Streams[Tensor], space: LatentSpace, channels: int | None = None
) -> Tensor:
    """`worse + scale * (better - worse)` (B, C, h, w), with a scale (B,) per stream; exactly `better` where it is 1.

    Of `channels`, if given, only so many are extrapolated, the first ones.
    """
    factor = space.spread(scale)
    if channels is not None:
        factor = torch.cat((factor[:, :channels], torch.ones_like(factor[:, channels:])), dim=1)
    return torch.where(factor == 1, better, worse + factor * (better - worse))

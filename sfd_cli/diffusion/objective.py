"""The training objective: interpolant, velocity target and the three loss terms, each per image.

Notation of arXiv 2512.04926: data x_1, noise eps, x_t = t x_1 + (1 - t) eps with each stream at its own time, and
the velocity target x_1 - eps. Composite latents hold the texture channels first, the semantic channels last.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sfd_cli.diffusion.schedule import AsynchronousSchedule, Streams


def draw_progress(
    count: int,
    schedule: AsynchronousSchedule,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Training progress T (count,) float32: a logit-normal(0, 1) draw stretched over the whole schedule.

    `generator` must live on `device`.
    """
    return torch.randn(count, generator=generator, device=device).sigmoid() * schedule.end


def split_streams(x: Tensor, semantic_channels: int) -> Streams[Tensor]:
    """Views of the texture and the semantic channels of x (B, C, h, w); either may have no channels."""
    texture_channels = x.shape[1] - semantic_channels
    return Streams(x[:, :texture_channels], x[:, texture_channels:])


def per_channel(values: Streams[Tensor], channels: int, semantic_channels: int) -> Tensor:
    """Spread one value per image and stream, each (B,), over channels: (B, C, 1, 1)."""
    texture = values.texture[:, None].expand(-1, channels - semantic_channels)
    semantic = values.semantic[:, None].expand(-1, semantic_channels)
    return torch.cat((texture, semantic), dim=1)[:, :, None, None]


def interpolate(data: Tensor, noise: Tensor, t_texture: Tensor, t_semantic: Tensor, semantic_channels: int) -> Tensor:
    """The noisy latent `t x_1 + (1 - t) eps` (B, C, h, w), each stream at its own time (B,)."""
    t = per_channel(Streams(t_texture, t_semantic), data.shape[1], semantic_channels)
    return t * data + (1 - t) * noise


def velocity_target(data: Tensor, noise: Tensor) -> Tensor:
    """The velocity of the interpolant, `x_1 - eps`: what the network learns to predict, for both streams."""
    return data - noise


def velocity_mse(prediction: Tensor, target: Tensor, semantic_channels: int, semantic_weight: float) -> Tensor:
    """Squared error with weight `semantic_weight` (beta) on the semantic channels, mean over C, h, w: (B,)."""
    error = split_streams((prediction - target).square(), semantic_channels)
    total = error.texture.sum(dim=(1, 2, 3)) + semantic_weight * error.semantic.sum(dim=(1, 2, 3))
    return total / prediction[0].numel()


def velocity_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """`1 - cos(v, u)` over the channels at every position, mean over positions: (B,)."""
    return 1 - F.cosine_similarity(prediction, target, dim=1).mean(dim=(1, 2))


def repa(projection: Tensor, features: Tensor, mode: Literal["cos", "mse", "cos_mse"]) -> Tensor:
    """Distance of projected hidden states to the encoder's patch tokens (REPA, arXiv 2410.06940): (B,).

    Args:
        projection: (B, tokens, width).
        features: (B, tokens, width).
        mode: `1 - cos` over the width, mean over tokens; the mean squared error; or the mean of these two.
    """
    if mode == "mse":
        return (projection - features).square().mean(dim=(1, 2))
    cosine = 1 - F.cosine_similarity(projection, features, dim=-1).mean(dim=1)
    if mode == "cos":
        return cosine
    return (cosine + repa(projection, features, "mse")) / 2

"""The training objective: interpolant, velocity target and the three loss terms, each per image.

Notation of arXiv 2512.04926, section 3: data x_1, noise eps, the interpolant x_t = t x_1 + (1 - t) eps with each
stream at its own time, and the velocity target u = x_1 - eps.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sfd_cli.diffusion.latents import LatentSpace, Streams
from sfd_cli.diffusion.schedule import Schedule


def draw_progress(
    count: int,
    schedule: Schedule,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Training progress T (count,) float32: a logit-normal(0, 1) draw stretched over the whole schedule.

    `generator` must live on `device`.
    """
    return torch.randn(count, generator=generator, device=device).sigmoid() * schedule.end


def interpolate(data: Tensor, noise: Tensor, times: Streams[Tensor], space: LatentSpace) -> Tensor:
    """The noisy latent `x_t = t x_1 + (1 - t) eps` (B, C, h, w), each stream at its own time (B,)."""
    t = space.spread(times)
    return t * data + (1 - t) * noise


def velocity_target(data: Tensor, noise: Tensor) -> Tensor:
    """The interpolant's derivative `u = x_1 - eps` (B, C, h, w), which the network learns to predict."""
    return data - noise


def velocity_mse(prediction: Tensor, target: Tensor, space: LatentSpace, semantic_weight: float) -> Tensor:
    """Squared error with weight `semantic_weight` (beta) on the semantic channels, mean over C, h, w: (B,)."""
    error = space.views((prediction - target).square())
    total = error.texture.sum(dim=(1, 2, 3)) + semantic_weight * error.semantic.sum(dim=(1, 2, 3))
    return total / prediction[0].numel()


def velocity_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """`1 - cos(v, u)` over the channels of every position, mean over positions: (B,)."""
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

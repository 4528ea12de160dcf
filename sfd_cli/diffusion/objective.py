"""The training objective: interpolant, velocity target and the loss terms, each per image, or per group of images.

Notation of arXiv 2512.04926, section 3: data x_1, noise eps, the interpolant x_t = t x_1 + (1 - t) eps with each
stream at its own time, and the velocity target u = x_1 - eps = (x_1 - x_t) / (1 - t).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sfd_cli.diffusion.latents import LatentSpace, Streams

LEAST_TIME_LEFT = 0.05
"""The least 1 - t that a clean latent is divided by, of JiT (arXiv 2511.13720): the velocity stays finite at t = 1."""


def interpolate(data: Tensor, noise: Tensor, times: Streams[Tensor], space: LatentSpace) -> Tensor:
    """The noisy latent `x_t = t x_1 + (1 - t) eps` (B, C, h, w), each stream at its own time (B,)."""
    t = space.spread(times)
    return t * data + (1 - t) * noise


def velocity_target(data: Tensor, noise: Tensor) -> Tensor:
    """The interpolant's derivative `u = x_1 - eps` (B, C, h, w), which the network learns to predict."""
    return data - noise


def velocity_of_data(data: Tensor, noisy: Tensor, times: Streams[Tensor], space: LatentSpace) -> Tensor:
    """The velocity `(x_1 - x_t) / max(1 - t, 0.05)` that a clean latent means, each stream at its own time (B,).

    Up to t = 0.95 this is `velocity_target` where `data` is the true x_1; it falls to zero from there to t = 1, so a
    solver reaches x_1 where its last slope is taken no later than that, and Heun's, which is at t = 1, is too small.

    Args:
        data: clean latent x_1, predicted or true, (B, C, h, w).
        noisy: the interpolant x_t (B, C, h, w).
        times: in [0, 1], data at 1.
        space: which channels are whose.

    Returns:
        (B, C, h, w), float32 at least.
    """
    dtype = torch.promote_types(noisy.dtype, torch.float32)
    return (data.to(dtype) - noisy.to(dtype)) / (1 - space.spread(times)).clamp(min=LEAST_TIME_LEFT)


def velocity_mse(
    prediction: Tensor, target: Tensor, space: LatentSpace, semantic_weight: float, weights: Tensor | None = None
) -> Tensor:
    """Squared error with weight `semantic_weight` (beta) on the semantic channels, mean over C, h, w: (B,).

    `weights` (B, C, 1, 1) multiply the errors, see `TrainingTimes.of`.
    """
    squares = (prediction - target).square()
    error = space.views(squares if weights is None else weights * squares)
    total = error.texture.sum(dim=(1, 2, 3)) + semantic_weight * error.semantic.sum(dim=(1, 2, 3))
    return total / prediction[0].numel()


def velocity_cosine(prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """`1 - cos(v, u)` over the channels of every position, mean over positions: (B,).

    With `weights` (B, C, 1, 1) the products in it are weighted sums over channels, so that a stream of weight 0 has no
    part in them. The term as a whole keeps its weight: both streams' together is always the same.
    """
    if weights is not None:
        prediction, target = weights.sqrt() * prediction, weights.sqrt() * target
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


def dispersive(hidden: Tensor, group: int, temperature: float) -> Tensor:
    """How near hidden states of different images are to each other (arXiv 2506.09027, the InfoNCE form): (B / group,).

        log mean_ij exp(-D(z_i, z_j) / temperature),   D(z_i, z_j) = ||z_i - z_j||^2 / dim z,

    z being all tokens of an image in a row. The mean is over all pairs of a group, an image with itself among them as
    in the authors' code, so that values are from -log(group), all far apart, to 0, all equal. The authors' groups are
    the images of one device, 16 of a batch of 256; here they are consecutive images, on however many devices.

    Args:
        hidden: (B, tokens, width); computed in float32 at least.
        group: images of a group; must divide B.
        temperature: tau.
    """
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    z = hidden.to(dtype).flatten(1).unflatten(0, (-1, group))
    z = z - z.mean(dim=1, keepdim=True)  # the same distances, of smaller numbers, whose products round less
    with torch.autocast(hidden.device.type, enabled=False):
        products = z @ z.mT / z.shape[-1]
    squares = products.diagonal(dim1=1, dim2=2)
    distances = squares[:, :, None] + squares[:, None, :] - 2 * products
    return (-distances / temperature).flatten(1).logsumexp(1) - 2 * math.log(group)

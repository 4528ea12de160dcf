"""The schedule that "Learning When to Denoise" would choose, as far as that paper is public (arXiv 2606.19662).

It moves a schedule tau down the gradient of

    sum_k 1/d_k E [ sg(tau_k') |f_k - v_k|^2 + lambda |tau_k' f_k|^2 ],

f_k being the network's velocity of stream k, v_k the true one, d_k the number of its values, and sg a stop of the
gradient: the errors pull the path to where they are small, the second term, the kinetic energy of what is predicted,
back to the diagonal. Neither says by itself which stream should lead: that is decided by the weights of both streams
and by lambda, which the paper does not tell. It is here to compare `path_criterion` with, on the same errors and
within the same family of curves.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sfd_cli.diffusion.latents import Streams
from sfd_cli.diffusion.schedule import with_lead

CELLS = 200
STEPS, RATE = 300, 0.05
STEEPEST = 3.9
"""Slopes go back from 4 on."""


def kinetic_curve(
    levels: Tensor, errors: Streams[Tensor], energies: Streams[Tensor], kinetic_weight: float
) -> tuple[float, float]:
    """Lead and slope of the curve where the paper's gradient vanishes, from the synchronous one.

    Args:
        levels: (n,) logit times of both streams, evenly spaced; between them and outside errors are interpolated and
            continued as they are at the edge.
        errors: mean squared errors of the velocity, a number for each channel's average, (n, n), indexed by the levels
            of textures and then semantics.
        energies: mean squares of the predicted velocity, likewise.
        kinetic_weight: lambda.
    """
    field = torch.stack([*errors, *energies]).float()[None]  # (1, 4, texture, semantic)
    curve = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.Adam([curve], lr=RATE)
    progress = torch.linspace(0, 1, CELLS + 1)[1:-1]
    for _ in range(STEPS):
        optimizer.zero_grad()
        times = with_lead(Streams(progress, progress), curve[0] + curve[1] * (2 * progress - 1))
        rates = [time.diff() * CELLS for time in times]
        middles = [(time[1:] + time[:-1]) / 2 for time in times]
        found = _interpolated(field, levels, middles[0].logit(), middles[1].logit())
        energy = sum(rate.square() * one for rate, one in zip(rates, found[2:], strict=True))
        error = sum(rate.detach() * one for rate, one in zip(rates, found[:2], strict=True))
        (error + kinetic_weight * energy).mean().backward()
        optimizer.step()
        with torch.no_grad():
            curve[1].clamp_(-STEEPEST, STEEPEST)
    lead, slope = curve.tolist()
    return lead, slope


def _interpolated(field: Tensor, levels: Tensor, texture: Tensor, semantic: Tensor) -> Tensor:
    """The four values of `field` (1, 4, n, n) at points (p,), bilinearly: (4, p)."""
    low, high = levels[0].item(), levels[-1].item()
    places = torch.stack([semantic, texture], dim=-1)  # x is the last axis
    grid = (2 * (places - low) / (high - low) - 1)[None, None].float()
    return F.grid_sample(field, grid, padding_mode="border", align_corners=True)[0, :, 0]

"""Ways between two noises: on the sphere, where standard normal noise lies."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Noises at a smaller angle, radians, lie on one line up to rounding.
PARALLEL = 1e-4


def slerp(first: Tensor, last: Tensor, part: float) -> Tensor:
    """The point at `part`, from 0 to 1, of the great circle from `first` to `last`, of one shape (Shoemake 1985).

    Noise of d numbers has a norm of nearly sqrt(d). Half way on the straight line between two it would have 0.7 of
    that, and no network has seen such noise. Exactly `first` at 0, and `last` at 1.
    """
    a, b = first.double().flatten(), last.double().flatten()
    angle = torch.arccos((a @ b / (a.norm() * b.norm())).clamp(-1, 1)).item()
    if min(angle, math.pi - angle) < PARALLEL:
        return (1 - part) * first + part * last
    weights = (math.sin((1 - part) * angle) / math.sin(angle), math.sin(part * angle) / math.sin(angle))
    return weights[0] * first + weights[1] * last

"""An exponential moving average of a model's weights, which samples better than the weights themselves."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMA:
    """`average = decay * average + (1 - decay) * weights` after every step, starting from the first weights.

    Attributes:
        model: the averaged module, frozen and in evaluation mode. Its buffers are those of the start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._average = get_ema_multi_avg_fn(decay)
        self._averaged = list(self.model.parameters())

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one step towards the weights of `model`, in a few kernels for all of them."""
        self._average(self._averaged, list(model.parameters()), 0)

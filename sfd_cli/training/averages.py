"""An exponential moving average of a model's weights, which samples better than the weights themselves."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMA:
    """`average = decay * average + (1 - decay) * weights` after every step, starting from the first weights.

    Args:
        model: the weights to start from.
        decay: of the average; with `warmup` the most that it rises to.
        warmup: the decay of step k, from 0, is (1 + k) / (10 + k) at most, so that the average of a short run holds
            little of its first weights, with a constant decay 0.997^150 = 64% after 150 steps.

    Attributes:
        model: the averaged module, frozen and in evaluation mode. Its buffers are those of the start; weights that are
            not trained are the model's own, and take no memory twice.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool = False) -> None:
        shared = {id(weight): weight for weight in model.parameters() if not weight.requires_grad}
        self.model = copy.deepcopy(model, dict(shared)).eval().requires_grad_(False)
        self._decay, self._warmup = decay, warmup
        self._averaged = [weight for weight in self.model.parameters() if id(weight) not in shared]

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take one step towards the weights of `model` after step `step`, in a few kernels for all of them."""
        decay = min(self._decay, (1 + step) / (10 + step)) if self._warmup else self._decay
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        get_ema_multi_avg_fn(decay)(self._averaged, trained, 0)

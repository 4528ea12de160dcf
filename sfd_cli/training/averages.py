"""An exponential moving average of a model's weights, which samples better than the weights themselves."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sfd_cli.distributed.processes import ALONE, Processes


class EMA:
    """`average = decay * average + (1 - decay) * weights` after every step, starting from the first weights.

    Args:
        model: the weights to start from.
        decay: of the average; with `warmup` the most that it rises to.
        warmup: the decay of step k, from 0, is (1 + k) / (10 + k) at most, so that the average of a short run holds
            little of its first weights, with a constant decay 0.997^150 = 64% after 150 steps.
        owners: of every trained weight the process that averages it; without them each averages all.
        processes: which share the work.

    Attributes:
        model: the averaged module, frozen and in evaluation mode. Its buffers are those of the start; weights that are
            not trained are the model's own, and take no memory twice. Between `release` and `gather` those of other
            processes are empty.
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float,
        warmup: bool = False,
        owners: Sequence[int] = (),
        processes: Processes = ALONE,
    ) -> None:
        shared = {id(weight): weight for weight in model.parameters() if not weight.requires_grad}
        self.model = copy.deepcopy(model, dict(shared)).eval().requires_grad_(False)
        self._decay, self._warmup = decay, warmup
        self._averaged = [weight for weight in self.model.parameters() if id(weight) not in shared]
        self._shapes = [weight.shape for weight in self._averaged]
        self._owners, self._processes = owners or [processes.rank] * len(self._averaged), processes

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take one step towards the weights of `model` after step `step`, in a few kernels for all of them."""
        decay = min(self._decay, (1 + step) / (10 + step)) if self._warmup else self._decay
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        own = [number for number, owner in enumerate(self._owners) if owner == self._processes.rank]
        if own:
            averaged, weights = ([one[number] for number in own] for one in (self._averaged, trained))
            get_ema_multi_avg_fn(decay)(averaged, weights, 0)

    def release(self) -> None:
        """Give back the memory of what other processes average."""
        for weight, owner in zip(self._averaged, self._owners, strict=True):
            if owner != self._processes.rank:
                weight.data = weight.new_empty(0)

    def gather(self) -> None:
        """Have the averages of all processes in every one; all call it alike."""
        if self._processes.count == 1:
            return
        for weight, owner, shape in zip(self._averaged, self._owners, self._shapes, strict=True):
            if owner != self._processes.rank:
                weight.data = weight.new_empty(shape)
            self._processes.share(weight.data, owner)

"""What turns gradients into steps: AdamW, and Muon for the matrices inside the blocks where the settings say so.

Muon (https://kellerjordan.github.io/posts/muon/) moves a matrix by the orthogonal matrix nearest to its momentum: all
directions move alike. Embeddings, the first and last layers, norms and biases are AdamW's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sfd_cli.distributed.processes import ALONE, Processes
from sfd_cli.training.settings import LoopSettings
from sfd_cli.training.sharding import local

MOMENTUM = 0.95
PEAK = "peak"
"""Key of a parameter group: its learning rate between warmup and decay."""


def optimizers_of(model: nn.Module, settings: LoopSettings, processes: Processes = ALONE) -> list[Optimizer]:
    """AdamW, fused, with betas 0.9 and `beta2`; after it Muon, with momentum 0.95, where the settings ask for it.

    Every weight that is trained belongs to one of them; both have the settings' decoupled weight decay. Weights with a
    learning rate of their own (`rate_scales`) are groups after the others. Of each, several processes share the state.
    """
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    muons = {name for name, weight in trained.items() if settings.optimizer == "muon" and is_inner(name, weight)}
    rest = _groups([name for name in trained if name not in muons], trained, settings.learning_rate, settings)
    betas = (0.9, settings.beta2)
    decay = settings.weight_decay
    found = [processes.shard(torch.optim.AdamW, rest, betas=betas, weight_decay=decay, fused=True)]
    if settings.optimizer == "muon":
        matrices = _groups([name for name in trained if name in muons], trained, settings.muon_learning_rate, settings)
        found.append(processes.shard(torch.optim.Muon, matrices, momentum=MOMENTUM, weight_decay=decay))
    return found


def _groups(
    names: list[str], weights: Mapping[str, Tensor], peak: float, settings: LoopSettings
) -> list[dict[str, Any]]:
    """Parameter groups of these weights, one for every learning rate; the order of weights is kept within each."""
    scales = {name: settings.rate_scales.get(name, 1.0) for name in names}
    return [
        {"params": [weights[name] for name in names if scales[name] == scale], PEAK: peak * scale}
        for scale in sorted(set(scales.values()), reverse=True) or [1.0]
    ]


def is_inner(name: str, weight: Tensor) -> bool:
    """Whether a weight is a matrix of attention, MLP or modulation of a block."""
    return name.startswith("blocks.") and weight.ndim == 2


def take_step(optimizers: Sequence[Optimizer], factor: float, skipped: Tensor) -> None:
    """A step with `factor` of the peak learning rates, after which the gradients are gone.

    Where `skipped`, a bool on the device, is set, weights and state stay as they are. AdamW's fused kernel reads it
    there, as it does for GradScaler; Muon has no such kernel and waits for the device.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group[PEAK]
        if isinstance(own := local(optimizer), torch.optim.AdamW):
            own.found_inf = skipped.float()  # type: ignore[attr-defined]
            optimizer.step()
        elif not skipped:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

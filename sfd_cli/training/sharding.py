"""Optimiser state shared out over the processes: each has that of its own weights, and updates those (ZeRO, stage 1).

Whose a weight is decides PyTorch's `ZeroRedundancyOptimizer`, which also sends updated weights to the others. The state
is saved and restored here, tensor by tensor: PyTorch pickles all of it, and holds what it has loaded twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from sfd_cli.distributed.processes import Processes


def local(optimizer: Optimizer) -> Optimizer:
    """What updates this process's own weights: the optimiser itself where there is one process."""
    return getattr(optimizer, "optim", optimizer)


def weights_of(optimizer: Optimizer) -> list[Tensor]:
    """The weights of an optimiser, in order."""
    return [weight for group in optimizer.param_groups for weight in group["params"]]


def owners(weights: Sequence[Tensor], optimizers: Sequence[Optimizer], processes: Processes) -> list[int]:
    """The process that has each weight's state; the same in every process."""
    own = {id(weight) for optimizer in optimizers for weight in weights_of(local(optimizer))}
    found = processes.everyones([id(weight) in own for weight in weights])
    return [next(rank for rank, has in enumerate(found) if has[number]) for number in range(len(weights))]


def collected(own: Mapping[str, Tensor], processes: Processes) -> dict[str, Tensor]:
    """The tensors of all processes, by name, in the first one; the others have theirs alone. All call it alike."""
    found = dict(own)
    told = processes.everyones({name: (tensor.shape, tensor.dtype, tensor.device.type) for name, tensor in own.items()})
    for source, names in enumerate(told[1:], start=1):
        for name, (shape, dtype, device) in names.items():
            tensor = own[name] if processes.rank == source else torch.empty(shape, dtype=dtype, device=device)
            processes.share(tensor, source)
            if processes.is_main:
                found[name] = tensor
    return found

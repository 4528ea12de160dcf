"""The processes that share a command's work, or this one alone, and their devices; `launch.py` starts them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sfd_cli.devices import choose_device, group_backend, kind_of
from sfd_cli.errors import SettingError, UserError

T = TypeVar("T")

# A process may be hours behind the others, with a larger share of the images to encode or a checkpoint to write.
TIMEOUT = timedelta(days=1)


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is; every method is a no-op for one alone.

    Attributes:
        rank: this process, counted from 0 over all machines.
        count: processes over all machines.
        local_rank: this process, counted from 0 on its machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @classmethod
    def join(cls) -> Processes:
        """Join torchrun's process group, e.g. NCCL between GPUs and gloo between CPUs; without it, the only one."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group(group_backend(), timeout=TIMEOUT)
        return cls(dist.get_rank(), count, int(os.environ.get("LOCAL_RANK", "0")))

    @staticmethod
    def leave() -> None:
        """Leave the process group once all work is done; who exits with its threads still running may be aborted.

        Not after an error: the others would be waited for, where torchrun ends them as soon as one has exited.
        """
        if dist.is_initialized():
            dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """The device that `runtime.device` names; a GPU is made the current one, and "cuda" is this process's own.

        Raises:
            UserError: no such device here, or none that several processes can train on.
        """
        device = choose_device(name)
        kind = kind_of(device)
        if kind.is_cpu:
            return device
        if kind.backend is None and self.count > 1:
            problem = f"{kind.name} devices cannot be shared by {self.count} processes"
            raise UserError("runtime.device", problem, "use one process, or cpu")
        own = torch.device(kind.name, self.local_rank if device.index is None else device.index)
        if self.count > 1 and own.index >= kind.count():
            problem = f"{self.count} processes want a device each, but {kind.count()} are here ({kind.name})"
            raise UserError("runtime.processes", problem, "use as many as there are, or auto")
        kind.select(own)
        return own

    def wrap(self, model: nn.Module) -> nn.Module:
        """The module to train through: gradients are averaged over the processes, first weights are rank 0's."""
        if self.count == 1:
            return model
        return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)

    def without_sync(self, network: nn.Module) -> AbstractContextManager[Any]:
        """A block whose backward passes do not average gradients, for all micro-batches but the last."""
        return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the processes of a tensor on the training device."""
        if self.count > 1:
            dist.all_reduce(values)
            values /= self.count
        return values

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the processes of a tensor on the CPU or the training device."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process. Goes over the CPU, so that no GPU is waited for."""
        if self.count == 1:
            return flag
        votes = torch.tensor(int(flag))
        dist.all_reduce(votes)
        return bool(votes.item())

    def broadcast(self, value: T) -> T:
        """Rank 0's value, in every process; it must be picklable."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, make: Callable[[], T]) -> list[T]:
        """What `make` gives in every process, which must be picklable, in their order; nothing but in the first one.

        What it raises in any of them is raised in the first one, to be told once. The others end without a word, also
        where the first one has come to its end without them.
        """
        if self.count == 1:
            return [make()]
        mine: T | Exception
        try:
            mine = make()
        except Exception as error:
            mine = error
        found: list[Any] = [None] * self.count
        try:
            dist.gather_object(mine, found if self.is_main else None)
            failed = self.any(isinstance(mine, Exception))
            if failed and not self.is_main:
                self.barrier()  # until the first one has told and is gone, for torchrun ends all as soon as one is
        except RuntimeError:
            if self.is_main:
                raise
            failed = True
        if failed and not self.is_main:
            raise SystemExit(1)
        for one in found:
            if isinstance(one, Exception):
                raise one
        return found if self.is_main else []

    def agree(self, make: Callable[[], T]) -> T:
        """What `make` gives here, once it has given something in every process; errors as by `gather`."""
        box: list[T] = []
        self.gather(lambda: box.append(make()))
        return box[0]

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.any(False)


ALONE = Processes()
"""The only process."""


def require_memory(batch_size: int, shape: Sequence[int], device: torch.device) -> None:
    """Check that float32 noise of this shape for every image of a batch, the least that it takes, fits into memory.

    Raises:
        SettingError: the device, or the machine where that is a CPU, has less; its subject is batch_size.
    """
    memory = kind_of(device).memory(device)
    needed = 4 * batch_size * math.prod(shape)
    if needed > memory:
        problem = f"noise for {batch_size} images alone is {needed / 1e9:,.1f} GB, but there are {memory / 1e9:,.1f}"
        raise SettingError("batch_size", problem, "use a smaller one")

"""The processes that share a command's work, or this one alone, and their devices; `launch` starts them."""

from __future__ import annotations

import inspect
import math
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from sfd_cli.devices import choose_device, kind_of
from sfd_cli.distributed.meeting import meet
from sfd_cli.distributed.watch import WATCH, in_time
from sfd_cli.errors import SettingError, StageFailure, UserError
from sfd_cli.files import fingerprint

T = TypeVar("T")

BUCKET = 100
"""MiB of gradients that are averaged at once: a block of SFD-XL, where PyTorch's 25 would make four messages of it."""


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
        """Join torchrun's process group, e.g. NCCL between GPUs and gloo between CPUs; without it, the only one.

        From then on the processes watch one another: one that is lost ends the others within minutes, by name.

        Raises:
            UserError: the variables of torchrun are not all there, or the processes do not see one another.
            StageFailure: others did not come.
        """
        if os.environ.get("WORLD_SIZE", "1") == "1":
            return cls()
        if not dist.is_initialized():
            meet()
        return cls(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))

    @staticmethod
    def leave() -> None:
        """Leave the process group once all work is done; who exits with its threads still running may be aborted.

        Not after an error: the others would be waited for, where torchrun ends them as soon as one has exited.
        """
        if dist.is_initialized():
            with suppress(RuntimeError):
                Processes.join().barrier()  # the first one may keep the store in which all watch
            WATCH.end(done=True)
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
        # SLURM may show every task its own device alone (--gpus-per-task).
        mine = 0 if kind.count() == 1 and "SLURM_LOCALID" in os.environ else self.local_rank
        own = torch.device(kind.name, mine if device.index is None else device.index)
        if self.count > 1 and own.index >= kind.count():
            problem = f"{self.count} processes want a device each, but {kind.count()} are here ({kind.name})"
            raise UserError("runtime.processes", problem, "use as many as there are, or auto")
        kind.select(own)
        return own

    def wrap(self, model: nn.Module) -> nn.Module:
        """The module to train through: gradients are averaged over the processes, first weights are rank 0's."""
        if self.count == 1:
            return model
        return DistributedDataParallel(model, bucket_cap_mb=BUCKET, gradient_as_bucket_view=True, **_ddp_options())

    def shard(self, kind: type[Optimizer], groups: list[dict[str, Any]], **options: Any) -> Optimizer:
        """An optimiser of these parameter groups, of which each process has a part (ZeRO, stage 1)."""
        if self.count == 1:
            return kind(groups, **options)
        from torch.distributed.optim import ZeroRedundancyOptimizer

        return ZeroRedundancyOptimizer(groups, kind, parameters_as_bucket_view=True, **options)

    def without_sync(self, network: nn.Module) -> AbstractContextManager[Any]:
        """A block whose backward passes do not average gradients, for all micro-batches but the last."""
        return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()

    def in_time(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches of training steps: a process that does not come from one to the next within minutes is stuck.

        The first two may take their time, and so may what is done `at_leisure`.
        """
        return iter(batches) if self.count == 1 else in_time(batches)

    def at_leisure(self) -> AbstractContextManager[Any]:
        """A block between training steps that may take its time, such as the writing of a checkpoint."""
        return WATCH.unhurried()

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the processes of a tensor on the training device."""
        if self.count > 1:
            WATCH.arrive()
            dist.all_reduce(values)
            values /= self.count
        return values

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the processes of a tensor on the CPU or the training device."""
        if self.count > 1:
            WATCH.arrive()
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process. Goes over the CPU, so that no GPU is waited for."""
        return self.vote(flag)()

    def vote(self, flag: bool) -> Callable[[], bool]:
        """As `any`, but the answer is waited for when it is asked for: other work may be done meanwhile."""
        if self.count == 1:
            return lambda: flag
        WATCH.arrive()
        votes = torch.tensor(int(flag))
        vote = dist.all_reduce(votes, async_op=True)

        def answer() -> bool:
            WATCH.arrive()
            vote.wait()
            return bool(votes.item())

        return answer

    def broadcast(self, value: T) -> T:
        """Rank 0's value, in every process; it must be picklable."""
        if self.count == 1:
            return value
        WATCH.arrive()
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def everyones(self, value: T) -> list[T]:
        """The value of every process, in their order, in every process; it must be picklable."""
        if self.count == 1:
            return [value]
        WATCH.arrive()
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def share(self, tensor: Tensor, source: int) -> None:
        """Fill a tensor of every process with that of process `source`; on the CPU or the training device."""
        if self.count > 1:
            WATCH.arrive()
            dist.broadcast(tensor, source)

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
        WATCH.arrive()
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

    def require_same(self, what: str, seen: Mapping[str, Any]) -> None:
        """Check that every process has before it what the first one has.

        Args:
            what: the subject of the error.
            seen: JSON-able, by the name that the error gives it.

        Raises:
            StageFailure: one has something else; raised in the first process, to be told once.
        """
        own = {name: fingerprint(value) for name, value in seen.items()}
        first = self.broadcast(own)

        def compare() -> None:
            if other := sorted(name for name in own.keys() | first.keys() if own.get(name) != first.get(name)):
                who = f"process {self.rank} ({socket.gethostname()})"
                problem = f"{who} has other {', '.join(other)} before it than the first process"
                raise StageFailure(what, problem, "give all machines the same files, by a file system that they share")

        self.agree(compare)

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.any(False)


def _ddp_options() -> dict[str, Any]:
    """What DDP calls by one name or another, or has not always had.

    No buffer of a network changes in training, so none is sent before a step. Gradients are new tensors in every step,
    and go into the buckets all at once instead of one by one.
    """
    known = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return {buffers: False} | ({"batched_grad_copy": True} if "batched_grad_copy" in known else {})


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

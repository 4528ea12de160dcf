"""Work of two real processes that know of each other."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch.distributed as dist

from sfd_cli.distributed.processes import Processes


def in_two_processes(folder: Path, work: Callable[[Processes], Any]) -> list[Any]:
    """What `work` returns in each of two processes that know of each other."""
    context = get_context("fork")

    def member(rank: int, answer: Connection) -> None:
        meeting = f"file://{folder / 'meeting'}"
        dist.init_process_group("gloo", meeting, timedelta(seconds=30), world_size=2, rank=rank)
        answer.send(work(Processes(rank, 2, rank)))
        dist.destroy_process_group()
        answer.recv()  # the tensors of an answer are fetched from the process that sent it

    pipes = [context.Pipe() for _ in range(2)]
    members = [context.Process(target=member, args=(rank, pipes[rank][1])) for rank in range(2)]
    for process in members:
        process.start()
    for _, theirs in pipes:
        theirs.close()
    answers = [ours.recv() for ours, _ in pipes]
    for ours, _ in pipes:
        ours.send(None)
    for process in members:
        process.join(30)
    assert [process.exitcode for process in members] == [0, 0]
    return answers

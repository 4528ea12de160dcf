"""Forked processes that meet as torchrun's or srun's do, each with its own log and exit code."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from pathlib import Path

from sfd_cli.cli.terminal import friendly_errors
from sfd_cli.distributed.processes import Processes


@dataclass
class Member:
    """One of them."""

    process: ForkProcess
    log: Path

    def end(self, seconds: float = 60) -> tuple[int | None, str]:
        """Its exit code, and what it has said."""
        self.process.join(seconds)
        return self.process.exitcode, self.log.read_text()


def free_port() -> int:
    """One that nobody has now."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


def start(
    folder: Path,
    work: Callable[[Processes], None],
    *,
    ranks: tuple[int, ...] = (0, 1),
    count: int = 2,
    prepare: Callable[[int], None] = lambda rank: None,
    **environment: str,
) -> list[Member]:
    """Processes `ranks` of `count`, which do `work` as a command of the program does it.

    Args:
        folder: for their logs.
        work: called with the processes joined.
        ranks: those that are started.
        count: how many they believe to be.
        prepare: called in each with its rank, before it joins.
        environment: variables beside torchrun's.
    """
    port = str(free_port())

    def member(rank: int, log: Path) -> None:
        os.dup2(os.open(log, os.O_WRONLY | os.O_TRUNC), 2)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        given = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
        os.environ.update({"MASTER_PORT": port} | given | environment)
        prepare(rank)

        @friendly_errors
        def command() -> None:
            work(Processes.join())
            Processes.leave()

        command()

    context = get_context("fork")
    logs = [folder / f"rank-{rank}.log" for rank in ranks]
    for log in logs:
        log.touch()
    members = [context.Process(target=member, args=pair) for pair in zip(ranks, logs, strict=True)]
    for process in members:
        process.start()
    return [Member(process, log) for process, log in zip(members, logs, strict=True)]


def wait_for(path: Path, seconds: float = 60) -> None:
    """Until a file is there."""
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not come"
        time.sleep(0.02)


def kill(members: list[Member]) -> None:
    """What is left of them."""
    for member in members:
        with suppress(ProcessLookupError):
            member.process.kill()
        member.process.join()

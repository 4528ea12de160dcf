"""Whether the processes that share a command are all there and go on: each tells so in their common store.

A collective operation waits for all processes, and cannot tell one that has an hour of images more to encode from one
whose machine is gone. So every process counts in the store as long as it runs, and notes how far it has come; one that
does not count any more, or takes no step where steps are to be taken, ends the run with a sentence that names it.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol, TypeVar

from sfd_cli.distributed.attendance import Attendance, Beat
from sfd_cli.errors import SfdError, StageFailure, UserError
from sfd_cli.messages import printable

VARIABLE = "SFD_PATIENCE"
PATIENCE = 120.0
"""Seconds after which a process is lost that is not heard of, or stuck that takes no step."""
SLOWER = 10
"""A step may take so many times as long as the second one did, where that is more: on a CPU steps may take minutes."""
AGAIN = "run the same command to go on"
VERDICT = "verdict"

T = TypeVar("T")


class Store(Protocol):
    """What is used of PyTorch's stores."""

    def set(self, key: str, value: str) -> object:
        """Write a value."""

    def get(self, key: str) -> bytes:
        """A value, once it is there."""

    def multi_get(self, keys: list[str]) -> list[bytes]:
        """Values, once they are there."""

    def check(self, keys: list[str]) -> bool:
        """Whether they all are there."""

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        """Write a value where there is none (or the expected one), and give what is there then."""


class Watch:
    """This process's part in it; nothing happens before `begin`, as where it is the only one."""

    def __init__(self) -> None:
        self._place = 0
        self._limit: float | None = None
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def begin(self, store: Store, place: str, rank: int, count: int, patience: float) -> None:
        """Tell of this process and look at the others, from now on.

        Args:
            store: for this alone: operations of one store wait for one another.
            place: where the store is, as a person knows it.
            rank: this process.
            count: of all processes; all must call this.
            patience: see `PATIENCE`.
        """
        self._store, self._where, self._rank, self._count = store, place, rank, count
        self._tick = min(patience / 10, 2.0)
        self._attendance, self._answered, self._left = Attendance(patience), time.monotonic(), False
        self._stop.clear()
        self._beats = 0
        store.set(f"who/{rank}", f"{socket.gethostname()} {os.getpid()}")
        self._tell()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._exchange, self._await_store)]
        for thread in self._threads:
            thread.start()
        atexit.register(self.end, done=True)  # of a program of somebody's own, which does not say so itself

    def end(self, done: bool = False) -> None:
        """Tell and look no more; `done`: the work is, and nobody need miss this process."""
        if not self._threads:
            return
        self._left = done
        self._stop.set()
        for thread in self._threads:
            thread.join(2)
        self._threads = []
        atexit.unregister(self.end)

    def arrive(self) -> None:
        """The process has come to a batch or to a collective operation."""
        self._place += 1

    def hurry(self, limit: float | None) -> None:
        """From now on it has to arrive within so many seconds; None: it may take its time."""
        self._limit = limit

    @contextmanager
    def unhurried(self) -> Iterator[None]:
        """A block that may take its time, such as the writing of a checkpoint."""
        before, self._limit = self._limit, None
        try:
            yield
        finally:
            self._limit = before

    def absent(self) -> str:
        """Of whom nothing is heard for a few seconds, as after a connection was lost; "" where all are heard of."""
        if not self._threads:
            return ""
        ranks = range(self._count)
        try:
            before = self._look(ranks)
            time.sleep(3 * self._tick)
            gone = [rank for rank, beat in self._look(ranks).items() if beat.number >= 0 and beat == before.get(rank)]
            return ", ".join(self._named(gone))
        except RuntimeError:  # where the first process keeps the store
            return "0"

    @property
    def patience(self) -> float:
        """Seconds; see `PATIENCE`."""
        return self._attendance.patience if self._threads else PATIENCE

    def _exchange(self) -> None:
        """Tell and look, in a thread of its own."""
        looked = time.monotonic()
        while not self._stop.wait(self._tick):
            try:
                self._tell()
                if self._store.check([VERDICT]):
                    os._exit(1)  # another process has told why
                # The first process looks at all, the others at the first one.
                told = self._look(range(self._count if self._rank == 0 else 1))
                now = time.monotonic()
                self._attendance.note(told, now)
                self._answered = now
                if now - looked > self.patience / 2:
                    self._attendance.excuse(now)
                looked = now
                self._judge(now)
            except RuntimeError:  # who kept the store is gone, and so is it; `_await_store` says so
                return
        if self._left:
            with suppress(RuntimeError):
                self._store.set(f"beat/{self._rank}", str(Beat(-1, 0)))

    def _tell(self) -> None:
        self._beats += 1
        self._store.set(f"beat/{self._rank}", str(Beat(self._beats, self._place, self._limit)))

    def _look(self, ranks: range) -> dict[int, Beat]:
        """What these processes tell, once all do."""
        if not self._store.check(keys := [f"beat/{rank}" for rank in ranks]):
            return {}
        return dict(zip(ranks, map(Beat.read, self._store.multi_get(keys)), strict=True))

    def _judge(self, now: float) -> None:
        if lost := self._attendance.lost(now):
            problem = f"not heard of for {self.patience:.0f} s: stopped, or the machine or its network is gone"
        else:
            # The others see the first one alone, and cannot tell who waits for whom.
            lost, limit = self._attendance.stuck(now) if self._rank == 0 else ([], 0.0)
            problem = f"no step for {limit:.0f} s, while the process itself still answers"
        if not lost or self._store.compare_set(VERDICT, "", str(self._rank)) != str(self._rank).encode():
            return
        say_error(StageFailure(f"process {', '.join(self._named(lost))} of {self._count}", problem, AGAIN))
        for host, process in map(self._who, lost):
            if host == socket.gethostname() and int(process) != os.getpid():
                with suppress(OSError):  # a stopped one cannot hear that it is to end
                    os.kill(int(process), signal.SIGCONT)
        time.sleep(3 * self._tick)  # the others read the verdict in a store that this process may keep
        os._exit(1)

    def _who(self, rank: int) -> list[str]:
        """Machine and number of a process."""
        return self._store.get(f"who/{rank}").decode().rsplit(" ", 1)

    def _named(self, ranks: Iterable[int]) -> list[str]:
        return [f"{rank} ({self._who(rank)[0]})" for rank in ranks]

    def _await_store(self) -> None:
        """End this process where the store has not answered for too long, in a thread that does not wait for it."""
        looked = time.monotonic()
        # Of the processes of a machine one speaks.
        patience = self.patience + (2 * self._tick if int(os.environ.get("LOCAL_RANK", "0")) else 0.0)
        while not self._stop.wait(self._tick):
            now = time.monotonic()
            if now - looked > self.patience / 2:
                self._answered = now
            looked = now
            if now - self._answered > patience:
                problem = f"no answer for {self.patience:.0f} s: the first machine or the network to it is gone"
                say_error(StageFailure(f"{self._where}, where the processes meet", problem, AGAIN))
                os._exit(1)


WATCH = Watch()
"""This process's."""


def patience() -> float:
    """Seconds of patience: `$SFD_PATIENCE`, else `PATIENCE`.

    Raises:
        UserError: the variable is not a number of seconds.
    """
    found = os.environ.get(VARIABLE, "")
    with suppress(ValueError):
        if not found or 1 <= float(found) < float("inf"):
            return float(found or PATIENCE)
    raise UserError(VARIABLE, f"{found!r} is not a number of seconds, 1 or more", "unset it, or give one")


def in_time(batches: Iterable[T]) -> Iterator[T]:
    """The batches of steps, each of which is to be done within the watch's patience.

    Not the first two: networks are compiled in the first one, and the second one tells how long a step takes.
    """
    try:
        began = time.monotonic()
        for number, batch in enumerate(batches):
            WATCH.arrive()
            yield batch
            if number == 1:
                WATCH.hurry(max(WATCH.patience, SLOWER * (time.monotonic() - began)))
            began = time.monotonic() if number == 0 else began
    finally:
        WATCH.hurry(None)


def say_error(error: SfdError) -> None:
    """Say what the command line would, from a thread that ends the process, whatever the others wait for."""
    print(f"sfd: error: {printable(error)}", file=sys.stderr, flush=True)

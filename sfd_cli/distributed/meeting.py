"""Where the processes of a command meet: all come and see one another in time, or a sentence says who does not."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from sfd_cli.devices import group_backend
from sfd_cli.distributed.watch import WATCH, patience, say_error
from sfd_cli.errors import StageFailure, UserError

TIMEOUT = timedelta(days=1)
"""Of collective operations: a process may be hours behind the others, with a larger share of the images to encode."""
MEETING = 300.0
"""Seconds in which all processes have to be there and to see one another; importing takes minutes on a slow disk."""
PAUSE = 0.1
"""Seconds between two looks."""
INTERFACES = "name the network interface that all machines share: GLOO_SOCKET_IFNAME=eth0 (and NCCL_SOCKET_IFNAME)"

Place = tuple[str, int]
"""Host and port."""


def meet() -> None:
    """Join the process group that torchrun's variables tell of, and keep watch with the others from then on.

    Raises:
        UserError: the variables do not tell of one, the place to meet or a process cannot be reached.
        StageFailure: others did not come.
    """
    rank, count, place = _told()
    seconds = patience()
    try:
        with _within(MEETING, _unreachable(place, TimeoutError("no answer"))):
            _reach(place, rank)
            group, watch = _store(place, is_master=rank == 0 and not _of_agent()), _store(place)
        run = _call_the_roll(group, rank, count, place)
        group.set_timeout(TIMEOUT)  # of what waits in it for another process's first use of a device
    except (RuntimeError, ValueError, OSError) as error:
        raise _unreachable(place, error) from None
    try:
        with _within(MEETING, _unseen(place, TimeoutError(f"{MEETING:.0f} s"))):
            store = dist.PrefixStore(f"{run}/group", group)
            dist.init_process_group(group_backend(), store=store, rank=rank, world_size=count, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise _unseen(place, error) from None
    WATCH.begin(dist.PrefixStore(f"{run}/watch", watch), f"{place[0]}:{place[1]}", rank, count, seconds)


def _told() -> tuple[int, int, Place]:
    """Rank, number of processes and where they meet, by torchrun's variables."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    told = {name: os.environ.get(name, "") for name in names}
    try:
        rank, count, port = (int(told[name]) for name in names if name != "MASTER_ADDR")
        if told["MASTER_ADDR"] and 0 <= rank < count and 0 < port < 2**16:
            return rank, count, (told["MASTER_ADDR"], port)
    except ValueError:
        pass
    problem = f"tells of several processes, but not where they meet: {', '.join(f'{k}={v}' for k, v in told.items())}"
    raise UserError("WORLD_SIZE", problem, "start them by torchrun or srun, or unset it")


def _of_agent() -> bool:
    """Whether torchrun's agent keeps the store, else the first process does."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _reach(place: Place, rank: int) -> None:
    """Wait until somebody answers at the place to meet, quietly, for PyTorch tells of every look in pages.

    Raises:
        OSError: nobody does.
    """
    if rank == 0 and not _of_agent():
        return
    until = time.monotonic() + MEETING
    while True:
        try:
            socket.create_connection(place, timeout=max(until - time.monotonic(), PAUSE)).close()
            return
        except OSError:
            if time.monotonic() + PAUSE > until:
                raise
        time.sleep(PAUSE)


def _store(place: Place, is_master: bool = False) -> dist.TCPStore:
    """A connection to the store in which the processes meet."""
    limit = timedelta(seconds=MEETING)
    return dist.TCPStore(*place, None, is_master, limit, wait_for_workers=False, multi_tenant=True)


def _call_the_roll(store: dist.TCPStore, rank: int, count: int, place: Place) -> str:
    """Wait until every process is there; a name for this run of them, the same in each.

    torchrun's store outlives the processes that it starts again (`--max-restarts`), and they must not take for each
    other's what those before have left in it. So each process comes with a word that is new, and the first one answers
    it until it has heard all of them say the name of this run.

    Raises:
        StageFailure: somebody has not come.
    """
    word, until = os.urandom(8).hex(), time.monotonic() + MEETING

    def wait_for(is_so: Callable[[], bool]) -> bool:
        while not is_so():
            if time.monotonic() > until:
                return False
            time.sleep(PAUSE)
        return True

    def read(key: str) -> str:
        return store.get(key).decode() if store.check([key]) else ""

    if rank:
        store.set(f"meeting/word/{rank}", word)
        if wait_for(lambda: read(f"meeting/answer/{rank}").startswith(word)):
            run = read(f"meeting/answer/{rank}").removeprefix(word)
            store.set(f"{run}/here/{rank}", "")
            if wait_for(lambda: store.check([f"{run}/all"])):
                return run
        raise StageFailure("the other processes", f"not all here after {MEETING:.0f} s, at {place[0]}:{place[1]}")
    run, answered = f"run-{word}", dict[int, str]()
    others = range(1, count)

    def all_here() -> bool:
        for other in others:
            if (theirs := read(f"meeting/word/{other}")) != answered.get(other, ""):
                answered[other] = theirs
                store.set(f"meeting/answer/{other}", theirs + run)
        return bool(store.check([f"{run}/here/{other}" for other in others]))

    if not wait_for(all_here):
        absent = [other for other in others if not store.check([f"{run}/here/{other}"])]
        named = ", ".join(map(str, absent[:8])) + (" ..." if absent[8:] else "")
        problem = f"not here after {MEETING:.0f} s, at {place[0]}:{place[1]}"
        raise StageFailure(f"process {named} of {count}", problem, "see whether it was started, and what it says")
    store.set(f"{run}/all", "")
    return run


@contextmanager
def _within(seconds: float, late: UserError) -> Iterator[None]:
    """A block that is done within so many seconds, or this process ends with a sentence."""

    def end() -> None:
        if not int(os.environ.get("LOCAL_RANK", "0")):  # one speaks for a machine
            say_error(late)
        os._exit(2)

    timer = threading.Timer(seconds + PAUSE, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _unreachable(place: Place, error: Exception) -> UserError:
    problem = f"the processes cannot meet there ({_first_line(error)})"
    return UserError(
        f"{place[0]}:{place[1]}", problem, "check MASTER_ADDR, MASTER_PORT and the firewall between machines"
    )


def _unseen(place: Place, error: Exception) -> UserError:
    problem = f"processes that met at {place[0]}:{place[1]} cannot connect to each other ({_first_line(error)})"
    return UserError("the network", problem, INTERFACES)


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split("\n")[0].split())[:200]

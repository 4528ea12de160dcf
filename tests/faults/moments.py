"""Moments at which a process changes files, counted over all processes of a run, and a kill at one of them.

Imports nothing of this project: `site/sitecustomize.py` puts it into processes that others start.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

CHANGES = frozenset({"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink"})
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_its_group() -> None:
    os.killpg(0, signal.SIGKILL)


def watch(
    folder: str | os.PathLike[str],
    tally: str | os.PathLike[str],
    fatal: int | None = None,
    kill: Callable[[], None] = kill_this_process,
) -> None:
    """From now on count the moments of this process and kill it at the `fatal`-th, counted from 1.

    A moment is before a file below `folder` is opened for writing, renamed, removed or forced to the disk, before a
    folder is made or removed, and after a rename. `tally`, outside of it, gets a byte for every moment, so that all
    processes of a run count together.
    """
    inside = os.path.realpath(folder) + os.sep
    counter = os.open(tally, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def moment(place: Any) -> None:
        if not isinstance(place, str | bytes | os.PathLike) or not os.path.abspath(os.fsdecode(place)).startswith(
            inside
        ):
            return
        os.write(counter, b".")
        if fatal is not None and os.fstat(counter).st_size >= fatal:
            kill()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in CHANGES or (event == "open" and arguments[2] & WRITING):
            moment(arguments[0])

    sys.addaudithook(hook)
    for name in ("rename", "replace"):
        setattr(os, name, _followed(getattr(os, name), lambda source, target: moment(target)))
    fsync = os.fsync

    def watched_fsync(file: int) -> None:
        moment(_place_of(file))
        fsync(file)

    os.fsync = watched_fsync  # type: ignore[assignment]


def count(tally: str | os.PathLike[str]) -> int:
    """How many moments there were."""
    return os.stat(tally).st_size if os.path.exists(tally) else 0


def _followed(act: Callable[..., None], after: Callable[[Any, Any], None]) -> Callable[..., None]:
    def followed(source: Any, target: Any, **options: Any) -> None:
        act(source, target, **options)
        after(source, target)

    return followed


def _place_of(file: Any) -> str:
    number = file if isinstance(file, int) else file.fileno()
    return os.readlink(f"/proc/self/fd/{number}") if os.path.exists("/proc/self/fd") else ""

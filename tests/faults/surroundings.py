"""Surroundings of a process that are worse than usual; each is called in a fork, before the work."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def no_file_longer_than(size: int) -> None:
    """Every write beyond `size` bytes of a file fails, as it does where a quota is used up."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def open_files(count: int) -> None:
    """No more than so many files may be open at once, of which three are, and the process cannot raise that."""
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))


def no_privileges() -> None:
    """Let permissions hold for root too."""
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, none) == 0


def clock_that_jumps_back(every: int, seconds: float) -> None:
    """After each `every` looks at the clock it is `seconds` earlier."""
    real, looks = time.time, [0]

    def now() -> float:
        looks[0] += 1
        return real() - seconds * (looks[0] // every)

    time.time = now


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """A disk of `size` bytes in `folder`, as long as the block lasts; False where none may be mounted."""
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    try:
        yield mount.returncode == 0
    finally:
        if mount.returncode == 0:
            subprocess.run(["umount", folder], check=True)


def resize(folder: Path, size: int) -> None:
    """Give a small disk another size."""
    subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)

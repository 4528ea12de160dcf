"""What figures were measured on: the kind of processor, the threads there are, and the commit."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from sfd_cli.git import git

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def machine() -> dict[str, Any]:
    """What decides the last bits of results: kind of processor, version of PyTorch, threads of a process."""
    return {"processor": processor(), "torch": version("torch"), "threads": available_threads()}


def commit() -> str | None:
    """The commit of the package's own repository, with `+` where files have changes; None where it has none."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    head, changed = (
        git(root, "rev-parse", "--short", "HEAD"),
        git(root, "status", "--porcelain", "--untracked-files=no"),
    )
    return None if head is None or changed is None else head.strip() + ("+" if changed.strip() else "")


def processor() -> str:
    """Kind of processor, nothing that names the machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def available_threads() -> int:
    """Threads that a process may use: OMP_NUM_THREADS, or as many as there are cores for it."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) else cores()


def cores_by_quota() -> int:
    """Cores that this process may use and that its control group lets it fill, of a container's limit rounded up."""
    return min([cores(), *(max(math.ceil(quota), 1) for quota in _quotas())])


def _quotas() -> Iterator[float]:
    """Processor time per time that the control groups of this process allow, outer ones too, of either version."""
    try:
        lines = [line.split(":", 2) for line in (PROC / "self/cgroup").read_text().splitlines()]
    except OSError:
        return
    for number, controllers, path in (line for line in lines if len(line) == 3):
        if number != "0" and "cpu" not in controllers.split(","):
            continue
        root = CGROUPS if number == "0" else CGROUPS / "cpu"
        inner = PurePosixPath(path.lstrip("/"))
        for folder in (root / inner, *((root / outer) for outer in inner.parents)):
            with suppress(OSError, ValueError, ZeroDivisionError):
                if number == "0":
                    quota, period = (folder / "cpu.max").read_text().split()
                else:
                    quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
                if (share := float(quota) / float(period)) > 0:  # "max" is no number, and -1 is no limit
                    yield share


def cores() -> int:
    """Cores that this process may use; all there are where the system does not tell, as macOS."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

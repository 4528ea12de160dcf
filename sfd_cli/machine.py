"""What figures were measured on: the kind of processor, the threads there are, and the commit."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sfd_cli.git import git


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


def cores() -> int:
    """Cores that this process may use; all there are where the system does not tell, as macOS."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

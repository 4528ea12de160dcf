"""What figures were measured on: the kind of processor, the threads there are, and the commit."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path


def commit() -> str | None:
    """The commit of the package's own repository, with `+` where files have changes; None where it has none."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        said = [
            subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return None
    return said[0] + ("+" if said[1] else "")


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
    return int(asked) if asked.isdigit() and int(asked) else len(os.sched_getaffinity(0))

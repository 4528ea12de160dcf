"""What work takes in a process of its own: seconds, and the peak of anonymous memory. Linux only (it reads /proc)."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

PRELOADED = ["scipy.linalg", "sfd_cli.evaluation.images", "sfd_cli.evaluation.features", "torch_fidelity.metric_kid"]
PRELOADED += ["torch_fidelity.metric_prc", "sfd_cli.evaluation.kid", "sfd_cli.evaluation.precision_recall"]


def in_its_own_process(work: Callable[[], Any]) -> dict[str, Any]:
    """Run `work` alone in a process: `seconds`, `mb` (peak of anonymous memory above the start) and its `result`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, work))
    process.start()
    there.close()
    held = here.recv()
    peak = held
    here.send("go")
    while not here.poll(0.002):
        peak = max(peak, anonymous(process.pid))
    seconds, result = here.recv()
    process.join()
    return {"seconds": seconds, "mb": (peak - held) / 1e6, "result": result}


def _work(pipe: Connection, work: Callable[[], Any]) -> None:
    # The first product of each library starts its threads, and their buffers are no part of the work.
    _ = np.ones((256, 256)) @ np.ones((256, 256)), torch.ones(256, 256) @ torch.ones(256, 256)
    pipe.send(anonymous(os.getpid()))
    pipe.recv()
    started = time.perf_counter()
    result = work()
    pipe.send((time.perf_counter() - started, result))


def anonymous(process: int | None) -> int:
    """Anonymous resident memory of a process, bytes."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")), 0)


def turns(candidates: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, list[dict[str, Any]]]:
    """Each candidate in a process of its own, turn by turn."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in candidates}
    for _ in range(repetitions):
        for name, work in candidates.items():
            found[name].append(in_its_own_process(work))
    return found


def median(runs: list[dict[str, Any]], key: str) -> float:
    """Median over the repetitions."""
    return float(np.median([run[key] for run in runs]))

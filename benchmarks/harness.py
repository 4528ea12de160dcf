"""What every benchmark does: time candidates turn by turn in one run, print a table, keep every repetition as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfd_cli.machine import commit, processor

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Timing:
    """Seconds of every repetition of one candidate."""

    name: str
    seconds: list[float]

    @property
    def median(self) -> float:
        """Median, seconds."""
        return float(np.median(self.seconds))

    @property
    def spread(self) -> tuple[float, float]:
        """Quartiles, seconds."""
        low, high = np.percentile(self.seconds, [25, 75])
        return float(low), float(high)


def interleaved(
    candidates: dict[str, Callable[[], object]],
    repetitions: int,
    warmup: int = 1,
    device: torch.device | None = None,
    before: Callable[[], object] | None = None,
) -> dict[str, Timing]:
    """Time each candidate `repetitions` times, in turn, so that what else the machine does falls on all alike.

    Args:
        candidates: what to time, by name; the first is the baseline.
        repetitions: timed calls of each.
        warmup: calls of each before the first that counts.
        device: a CUDA device is waited for after every call.
        before: called before every call, outside its time.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(-warmup, repetitions):
        for name, call in candidates.items():
            if before is not None:
                before()
            _wait(device)
            started = time.perf_counter()
            call()
            _wait(device)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - started)
    return {name: Timing(name, values) for name, values in seconds.items()}


def ratios(baseline: Timing, other: Timing) -> dict[str, float]:
    """How many times faster `other` is than `baseline`: the median over the turns of their ratio, and quartiles."""
    turns = np.asarray(baseline.seconds) / np.asarray(other.seconds)
    low, median, high = np.percentile(turns, [25, 50, 75])
    return {"median": float(median), "low": float(low), "high": float(high)}


def arguments(description: str | None, timed: bool = True) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes: `--device`, `--out`, and `--repetitions` of one that takes time."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="cpu or cuda [%(default)s]")
    if timed:
        parser.add_argument("--repetitions", type=int, default=7, help="timed turns of every candidate [%(default)s]")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"folder for the JSON [{RESULTS.name}/]")
    return parser


def save(name: str, options: argparse.Namespace, result: dict[str, Any]) -> Path:
    """Write `NAME-DEVICE.json`: where it was measured, with what settings, and every figure."""
    device = torch.device(options.device)
    path = Path(options.out) / f"{name}-{device.type}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    settings.pop("out")
    record = {"benchmark": name, "machine": machine(device), "commit": commit(), "settings": settings, **result}
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"\n{path}")
    return path


def machine(device: torch.device) -> dict[str, Any]:
    """Kind of processor and device, and versions; nothing that names the machine."""
    facts: dict[str, Any] = {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"gpu": properties.name, "gpu_memory_gib": round(properties.total_memory / 2**30, 1)}
        facts |= {
            "cuda": torch.version.cuda,
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        }
    return facts


def table(rows: list[dict[str, Any]]) -> None:
    """Print rows of equal keys as an aligned table."""
    shown = [{key: _shown(value) for key, value in row.items()} for row in rows]
    widths = {key: max(len(key), *(len(row[key]) for row in shown)) for key in shown[0]}
    print("  ".join(f"{key:<{width}}" for key, width in widths.items()))
    for row in shown:
        print("  ".join(f"{row[key]:<{width}}" for key, width in widths.items()))


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _wait(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def _output(*command: str) -> str:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"

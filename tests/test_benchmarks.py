"""Every benchmark runs at a tiny size and writes its figures; what the figures are is not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(script: str, *options: str) -> str:
    """What a script prints; it must succeed."""
    command = [sys.executable, str(BENCHMARKS / script), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def written(folder: Path, name: str) -> dict[str, Any]:
    """The JSON that a script left."""
    found: dict[str, Any] = json.loads((folder / f"{name}-cpu.json").read_text())
    return found


def test_scoring_compares_memory_and_distances_of_both_ways(tmp_path: Path) -> None:
    printed = run("scoring.py", "--quick", "--device", "cpu", "--repetitions", "1", "--out", str(tmp_path))
    found = written(tmp_path, "scoring")
    assert {"images", "metrics", "distances", "singular"} <= set(found)
    assert found["distances"][0]["relative difference"] < 1e-6
    assert "streamed, MB" in printed


def test_growth_fits_an_exponent_to_four_sizes_of_each_kind(tmp_path: Path) -> None:
    run("growth.py", "--quick", "--device", "cpu", "--out", str(tmp_path))
    found = written(tmp_path, "growth")["growth"]
    assert set(found) == {"images", "tokens", "batch", "width"}
    assert all(len(part["median"]) == 4 and "exponent" in part for part in found.values())
    assert (tmp_path / "growth.png").stat().st_size > 10_000


def test_the_estimate_says_that_it_was_not_measured_and_what_it_assumes() -> None:
    printed = run("estimate.py")
    assert "Stated, not measured" in printed
    assert all(name in printed for name in ("`sfd encode-latents`", "`sfd train`", "`training_share`", "1 H100, hours"))

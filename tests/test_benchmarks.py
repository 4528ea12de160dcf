"""Every benchmark runs at a tiny size and writes its figures; what the figures are is not tested."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tiny_project import tiny_settings, write_models

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


def _trained_models(tmp_path: Path) -> str:
    """Random ones will do; the guide is the transformer itself."""
    settings = tiny_settings(tmp_path / "models")
    write_models(settings)
    shutil.copytree(settings.paths.dit, settings.paths.guide)
    return str(tmp_path / "models")


def test_sampling_puts_every_solver_beside_a_tight_solution(tmp_path: Path) -> None:
    options = ("--models", _trained_models(tmp_path), "--images", "2", "--offsets", "0.3")
    printed = run("sampling.py", *options, "--device", "cpu", "--out", str(tmp_path))
    rows = written(tmp_path, "sampling")["rows"]
    assert {(row["solver"], row["grid"]) for row in rows} == {
        (solver, grid) for solver in ("euler", "heun", "ab2", "ab3", "dopri5") for grid in ("phases", "one-span")
    }
    assert "calls, ratio" in printed
    assert (tmp_path / "sampling.png").stat().st_size > 10_000


def test_ideas_for_sampling_are_compared_with_the_recommended_setting(tmp_path: Path) -> None:
    options = ("--models", _trained_models(tmp_path), "--images", "2", "--offsets", "0.3")
    run("sampling_ideas.py", *options, "--device", "cpu", "--out", str(tmp_path))
    assert "recommended" in written(tmp_path, "sampling_ideas")["rmse"]


def test_sampling_speed_compares_like_with_like(tmp_path: Path) -> None:
    sizes = ("--images", "2", "--batch", "4", "--count", "6", "--repetitions", "1", "--no-compile")
    options = ("--models", _trained_models(tmp_path), *sizes, "--device", "cpu", "--out", str(tmp_path))
    printed = run("sampling_speed.py", *options)
    assert {"solving", "one_call", "end_to_end"} <= set(written(tmp_path, "sampling_speed"))
    assert "6 equal images" in printed

"""`sfd show`: places, scores, seconds, and this run's results beside the committed ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pipeline_project import run as shell
from refusals import refusal

from sfd_cli.config import Settings
from sfd_cli.files import read_json, write_json
from sfd_cli.machine import machine
from sfd_cli.stages import show

REPOSITORY = Path(__file__).parents[2]
METRICS = Path("metrics")
SCORES = {
    "features": {"dinov2": "DINOv2", "inception": "Inception"},
    "fd_dinov2": 62.55,
    "fd_dinov2_se": 2.68,
    "fid": None,
    "fid_reason": "none here",
    "machine": machine(),
}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with committed scores."""
    monkeypatch.chdir(tmp_path)
    write(SCORES)
    Path("dvc.lock").write_text("stages: {}\n")
    shell(tmp_path, "git", "init", "--quiet")
    shell(tmp_path, "git", "add", "--all")
    shell(tmp_path, "git", "commit", "--quiet", "--message", "Results")
    return tmp_path


def write(scores: dict[str, Any]) -> None:
    write_json(METRICS / "fid.json", scores)


def test_where_nothing_has_changed_it_is_the_committed_run_to_the_byte() -> None:
    shown = show.run(Settings())
    assert shown["fd_dinov2"]["samples"] == 62.55
    assert "to the byte" in shown["committed results"]
    assert "your own run" not in shown


@pytest.mark.parametrize("path", ["dvc.lock", "metrics/dit/metrics.json"])
def test_one_other_byte_anywhere_among_the_results_and_it_is_not(path: str, project: Path) -> None:
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text("{}\n")
    shell(project, "git", "add", "--all")
    shell(project, "git", "commit", "--quiet", "--message", "One more")
    assert "committed results" in show.run(Settings())
    Path(path).write_text("{ }\n")
    assert "committed results" not in show.run(Settings())


def test_another_run_has_its_scores_beside_the_committed_ones_with_their_spread(project: Path) -> None:
    write_json(METRICS / "seeds.json", {"fd_dinov2": [62.55, 62.7, 64.69]})
    write(SCORES | {"fd_dinov2": 63.9})
    own = show.run(Settings())["your own run"]
    assert own["fd_dinov2"].startswith("63.9, committed 62.55 ± 2.7")
    assert own["fd_dinov2"].endswith("62.55, 62.7, 64.69")
    assert "committed on" not in own, "it was the same kind of machine"
    shell(project, *own["put back"].split())
    assert read_json(METRICS / "fid.json")["fd_dinov2"] == 62.55


def test_a_run_on_another_machine_names_both() -> None:
    write(SCORES | {"fd_dinov2": 63.9, "machine": {"processor": "Abacus", "threads": 3, "torch": "9.9"}})
    own = show.run(Settings())["your own run"]
    assert own["on"] == "Abacus, 3 threads, PyTorch 9.9"
    assert machine()["processor"] in own["committed on"]


def test_without_committed_scores_nothing_is_compared(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell(project, "git", "rm", "--quiet", "--cached", "metrics/fid.json")
    shell(project, "git", "commit", "--quiet", "--message", "None")
    assert {"committed results", "your own run"}.isdisjoint(show.run(Settings()))
    monkeypatch.setenv("PATH", "")
    assert show.run(Settings())["fd_dinov2"]["samples"] == 62.55


def test_it_tells_what_every_stage_took_in_their_order() -> None:
    write_json(
        METRICS / "timings" / "train.json", [{"seconds": 40, "resumed": False}, {"seconds": 2.5, "resumed": True}]
    )
    write_json(METRICS / "timings" / "prepare-data.json", [{"seconds": 1.25, "resumed": True}])
    seconds = show.run(Settings())["seconds"]
    assert list(seconds) == ["prepare-data", "train", "all"]
    assert seconds["train"] == "42.5, in 2 runs"
    assert seconds["prepare-data"].startswith("1.2, resumed")
    assert seconds["all"] == "43.8"


def test_nothing_scored_yet_is_said_in_one_sentence() -> None:
    (METRICS / "fid.json").unlink()
    with refusal(METRICS / "fid.json", "dvc repro"):
        show.run(Settings())


def test_the_spread_over_seeds_is_that_of_the_recorded_runs_and_of_the_readme() -> None:
    seeds = json.loads((REPOSITORY / "metrics" / "seeds.json").read_text())["fd_dinov2_vits14_84"]
    rows = json.loads((REPOSITORY / "benchmarks" / "results" / "speedrun.json").read_text())
    assert seeds == [row["fd"] for row in rows if row["row"] == "rate"]
    assert f"({', '.join(f'{one:.1f}' for one in seeds)})" in (REPOSITORY / "README.md").read_text()

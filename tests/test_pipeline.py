"""The whole pipeline through DVC at a tiny size: it runs, runs only what changed, and survives being killed."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from PIL import Image
from pipeline_project import REPOSITORY, artifacts, create, environment, run

STAGES = re.compile(r"Running stage '([\w-]+)'")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after an unbroken `dvc repro`, its lock file and metrics committed."""
    folder = create(tmp_path_factory.mktemp("pipeline") / "project")
    run(folder, "dvc", "repro")
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "--quiet", "--message", "Results")
    return folder


def test_it_makes_every_artifact_for_real(project: Path) -> None:
    with h5py.File(project / "data" / "latents" / "index.h5") as index:
        assert index["texture"].shape == (48, 2, 4, 4, 4)
        assert index["semantic"].shape == (48, 2, 4, 4, 4)
        assert np.isfinite(index["texture"][:]).all()
    with np.load(project / "data" / "samples" / "samples.npz") as archive:
        assert archive["arr_0"].shape == (12, 32, 32, 3)
        with Image.open(project / "data" / "samples" / "000007.png") as image:
            np.testing.assert_array_equal(archive["arr_0"][7], np.asarray(image))
    scores = json.loads((project / "metrics" / "fid.json").read_text())
    assert scores["fd_dinov2"] > 0
    page = (project / "reports" / "index.html").read_text()
    assert "data:image/png;base64," in page


def test_the_settings_that_made_it_lie_beside_each_output(project: Path) -> None:
    for folder in ("data/images", "data/features", "data/latents", "models/dit", "models/guide", "data/samples"):
        record = json.loads((project / folder / "settings.json").read_text())
        assert record["complete"]
        assert record["settings"]


def test_a_second_repro_does_nothing(project: Path) -> None:
    said = run(project, "dvc", "repro")
    assert STAGES.findall(said) == []
    assert "up to date" in run(project, "dvc", "status")


def test_metrics_and_plots_are_shown(project: Path) -> None:
    assert "fd_dinov2" in run(project, "dvc", "metrics", "show")
    run(project, "dvc", "plots", "show", "--out", "plots_page")
    page = (project / "plots_page" / "index.html").read_text()
    assert "Transformer and guide, loss" in page
    assert "dit/plots/metrics/loss.tsv" in page


def test_show_ends_with_the_score(project: Path) -> None:
    said = run(project, "sfd", "show")
    assert "reports/samples.png" in said
    assert (project / "reports" / "samples.png").exists()
    assert "fd_dinov2" in said


def test_a_new_offset_reruns_sampling_and_scoring_and_nothing_else(project: Path, tmp_path: Path) -> None:
    copy = tmp_path / "project"
    shutil.copytree(project, copy, symlinks=True)
    said = run(copy, "dvc", "exp", "run", "-S", "sample.delta_t=0.2")
    assert STAGES.findall(said) == ["sample", "fid", "report"]
    assert yaml.safe_load((copy / "params.yaml").read_text())["sample"]["delta_t"] == 0.2
    assert json.loads((copy / "data" / "samples" / "settings.json").read_text())["settings"]["delta_t"] == 0.2


def test_killed_in_the_middle_it_goes_on_to_the_same_artifacts(project: Path, tmp_path: Path) -> None:
    copy = create(tmp_path / "project")
    shutil.copytree(project / "data" / "features", copy / "data" / "features")
    for moment in ("data/latents/shard-00001.h5", "models/dit/checkpoints/step-0000004", "data/samples/000005.png"):
        _kill_repro_when(copy, copy / moment)
    run(copy, "dvc", "repro")
    assert artifacts(copy) == artifacts(project)


@pytest.mark.slow
def test_killed_at_three_random_moments_it_goes_on_to_the_same_artifacts(project: Path, tmp_path: Path) -> None:
    copy = create(tmp_path / "project")
    moments = random.Random(os.environ.get("SFD_KILL_SEED")).sample(range(3, 40), 3)
    for seconds in moments:
        process = _start_repro(copy)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        _kill(process)
    run(copy, "dvc", "repro")
    assert artifacts(copy) == artifacts(project), f"killed after {moments} seconds"


def _kill_repro_when(folder: Path, path: Path) -> None:
    """SIGKILL `dvc repro` and what it started at the moment `path` is there."""
    process = _start_repro(folder)
    deadline = time.monotonic() + 240
    while not path.exists():
        assert process.poll() is None, f"dvc repro ended before {path} was there"
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.01)
    _kill(process)


def _start_repro(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["dvc", "repro"],
        cwd=folder,
        env=environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_the_readmes_python_example_runs(project: Path, tmp_path: Path) -> None:
    copy = tmp_path / "project"
    shutil.copytree(project, copy, symlinks=True)
    (example,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    (copy / "example.py").write_text(example + "print(tuple(composite.shape))\n")
    said = run(copy, "python", "example.py")
    assert said.endswith("(2, 8, 4, 4)\n")
    assert len(list((copy / "data" / "eight").glob("*.png"))) == 8


def test_the_readmes_sampling_command_works(project: Path, tmp_path: Path) -> None:
    copy = tmp_path / "project"
    shutil.copytree(project, copy, symlinks=True)
    run(copy, *shlex.split("sfd sample --delta-t 0.3 --num-images 64 --grid out.png --samples data/try"))
    assert len(list((copy / "data" / "try").glob("*.png"))) == 64
    with Image.open(copy / "out.png") as grid:
        assert min(grid.size) > 100

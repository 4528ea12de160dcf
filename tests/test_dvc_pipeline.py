"""The whole pipeline through DVC at a tiny size: it runs, runs only what changed, and survives being killed."""

from __future__ import annotations

import hashlib
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
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
from command_line import done
from notebooks import FIRST_HOUR, executed, require_first_hour, said
from PIL import Image
from pipeline_project import PLAIN, REPOSITORY, artifacts, create, environment, run

from sfd_cli.files import read_json
from sfd_cli.machine import machine

README = (REPOSITORY / "README.md").read_text()
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
    assert scores["fd_dinov2_vits14_56_random"] > 0
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


def test_the_metrics_that_dvc_shows_fit_a_terminal(project: Path) -> None:
    shown = run(project, "dvc", "metrics", "show").splitlines()
    assert max(map(len, shown)) <= 120
    assert [line.split()[0] for line in shown[1:]] == ["metrics/scores.json", "metrics/learn_schedule/metrics.json"]


@pytest.mark.slow
def test_a_clone_that_runs_it_all_again_is_as_committed_to_the_byte(project: Path, tmp_path: Path) -> None:
    """Whatever time it takes: nothing that git or DVC tracks depends on the clock."""
    clone = tmp_path / "clone"
    run(tmp_path, "git", "clone", "--quiet", str(project), str(clone))
    every = set(yaml.safe_load((clone / "dvc.yaml").read_text())["stages"])
    # The scores are in git, and DVC finds that what they are made of is the same again.
    assert set(STAGES.findall(run(clone, "dvc", "repro"))) == every - {"fid"}
    assert run(clone, "git", "status", "--porcelain") == ""
    assert "to the byte" in run(clone, "sfd", "show")


@pytest.mark.slow
def test_the_demo_run_again_leaves_its_checkout_as_committed(tmp_path: Path) -> None:
    """The proof of reproduction, eleven minutes, on the kind of machine that made the committed results."""
    recorded = json.loads((REPOSITORY / "metrics" / "fid.json").read_text()).get("machine")
    here = machine() | {"threads": len(os.sched_getaffinity(0))}
    if recorded != here:
        pytest.skip(f"the committed results are of {recorded}, and this is {here}")
    clone = tmp_path / "clone"
    run(tmp_path, "git", "clone", "--quiet", str(REPOSITORY), str(clone))
    threads = {"OMP_NUM_THREADS": str(here["threads"])}
    run(clone, "dvc", "repro", **threads)
    assert run(clone, "git", "status", "--porcelain") == ""
    assert "to the byte" in run(clone, "sfd", "show", **threads)


def test_a_new_offset_reruns_sampling_and_scoring_and_nothing_else(project: Path, tmp_path: Path) -> None:
    copy = tmp_path / "project"
    shutil.copytree(project, copy, symlinks=True)
    said = run(copy, "dvc", "exp", "run", "-S", "sample.delta_t=0.2")
    assert STAGES.findall(said) == ["sample", "fid", "report"]
    assert yaml.safe_load((copy / "params.yaml").read_text())["sample"]["delta_t"] == 0.2
    assert json.loads((copy / "data" / "samples" / "settings.json").read_text())["settings"]["delta_t"] == 0.2


def test_killed_in_the_middle_it_goes_on_to_the_same_artifacts(project: Path, tmp_path: Path) -> None:
    """From a project in which they never ran: their outputs are gone, and their entries in the lock file."""
    copy = tmp_path / "project"
    shutil.copytree(project, copy, symlinks=True)
    lock = yaml.safe_load((copy / "dvc.lock").read_text())
    for stage in ("encode-latents", "train", "sample", "fid", "report"):
        for out in lock["stages"].pop(stage).get("outs", []):
            path = copy / out["path"]
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (copy / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))
    # DVC's memory of earlier runs would bring them back without running anything.
    shutil.rmtree(copy / ".dvc" / "cache" / "runs", ignore_errors=True)
    for moment in ("data/latents/shard-00001.h5", "models/.checkpoints/dit/*/step-0000004", "data/samples/000005.png"):
        _kill_repro_when(copy, moment)
    run(copy, "dvc", "repro")
    assert artifacts(copy) == artifacts(project)


@pytest.mark.slow
def test_no_stage_writes_through_a_link_into_the_cache(project: Path, tmp_path: Path) -> None:
    """Every stage makes anew what it has lost a part of, by hand, where DVC would first part files from the cache."""
    copy = tmp_path / "project"
    shutil.copytree(project, copy, symlinks=True)
    run(copy, "dvc", "checkout", "--relink")
    stored = {path: path.stat() for path in (copy / ".dvc" / "cache" / "files").rglob("*") if path.is_file()}
    made = [path for place in ("data", "models", "reports") for path in (copy / place).rglob("*") if path.is_file()]
    if {found.st_ino for found in stored.values()}.isdisjoint(path.stat().st_ino for path in made):
        pytest.skip("this file system has no hard links, or clones files without them")
    for command, stage in yaml.safe_load((copy / "dvc.yaml").read_text())["stages"].items():
        for record in (copy / next(iter(out)) / "settings.json" for out in stage["outs"]):
            if record.exists() and "complete" in (found := json.loads(record.read_text())):
                # Unfinished, as after a kill: the stage goes on in the same folder, among the links.
                record.unlink()
                record.write_text(json.dumps(found | {"complete": False}))
        run(copy, "sfd", command)
    assert {path for path, found in stored.items() if path.stat().st_mtime_ns != found.st_mtime_ns} == set()
    for path in stored:
        if path.suffix != ".dir":
            assert hashlib.md5(path.read_bytes()).hexdigest() == path.parent.name + path.name, path


def test_another_compressor_begins_with_other_features(project: Path, tmp_path: Path) -> None:
    copy = tmp_path / "project"
    shutil.copytree(project, copy, symlinks=True)
    change_params(copy, semvae={"compressor": "pca"})
    assert changed_stages(copy) >= {"extract-features", "train-semvae"}
    assert not changed_stages(copy) & {"prepare-data", "train-texture-vae"}


def test_without_semantics_and_guide_the_graph_is_the_same(tmp_path: Path) -> None:
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    assert changed_stages(create(tmp_path / "project", PLAIN)) == set(stages)


@pytest.mark.slow
def test_without_semantics_and_guide_it_runs_to_the_report_and_follows_its_settings(tmp_path: Path) -> None:
    plain = create(tmp_path / "project", PLAIN)
    assert "is empty" not in run(plain, "dvc", "repro")
    assert STAGES.findall(run(plain, "dvc", "repro")) == []
    assert "failed" not in run(plain, "dvc", "metrics", "show")
    run(plain, "git", "add", "--all")
    run(plain, "git", "commit", "--quiet", "--message", "Results")
    clone = tmp_path / "clone"
    run(tmp_path, "git", "clone", "--quiet", str(plain), str(clone))
    run(clone, "dvc", "cache", "dir", "--local", str(plain / ".dvc" / "cache"))
    run(clone, "dvc", "checkout")
    assert "up to date" in run(clone, "dvc", "status")

    encoder = {"name": "dinov2_vits14", "weights": "random", "image_size": 56}
    change_params(plain, semvae={"compressor": "pca", "channels": 4}, encoder=encoder)
    assert STAGES.findall(run(plain, "dvc", "repro", "encode-latents")) == [
        "extract-features",
        "train-semvae",
        "encode-latents",
    ]


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


def change_params(folder: Path, **sections: dict[str, Any]) -> None:
    """Lay keys over sections of params.yaml."""
    path = folder / "params.yaml"
    params = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(params | {name: params[name] | keys for name, keys in sections.items()}))


def changed_stages(folder: Path) -> set[str]:
    return set(json.loads(run(folder, "dvc", "status", "--json")))


def _kill_repro_when(folder: Path, moment: str) -> None:
    """SIGKILL `dvc repro` and what it started at the moment a file of this name is there."""
    process = _start_repro(folder)
    deadline = time.monotonic() + 240
    while not list(folder.glob(moment)):
        assert process.poll() is None, f"dvc repro ended before {moment} was there"
        assert time.monotonic() < deadline, f"{moment} did not come"
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


def test_the_readmes_python_runs(project: Path, tmp_path: Path) -> None:
    copy = tmp_path / "project"
    shutil.copytree(project, copy, symlinks=True)
    short, long = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (copy / "example.py").write_text(short + long + "print(tuple(composite.shape))\n")
    said = run(copy, "python", "example.py")
    assert said.endswith("(2, 8, 4, 4)\n")
    assert len(list((copy / "data" / "eight").glob("*.png"))) == 8
    with Image.open(copy / "first.png") as image:
        assert image.size == (32, 32)


def test_the_notebook_of_the_first_hour_runs(project: Path, tmp_path: Path) -> None:
    copy = tmp_path / "project"
    shutil.copytree(project, copy, symlinks=True)
    cells = executed(FIRST_HOUR, tmp_path, parameters='folder = "project"', project="os.chdir(folder)")
    assert "up to date" in said(cells["pipeline"])
    require_first_hour(cells, copy)


IN_THE_PROJECT = (
    "dvc metrics show",
    "dvc plots show",
    "sfd track --to tensorboard",
    "sfd sample --delta-t 0.1 --num-images 64 --grid out.png --samples data/try",
    "sfd sample --solver dopri5 --guidance cfg --scale 2 --classes 0,6 --num-images 64 --samples data/two-classes",
    "sfd sample --classes flags --to-class objects --num-images 8 --grid strip.png --samples data/strip",
    "sfd train --learning-rate 1e-3 --dit models/slower",
    "sfd schedule inspect",
    "sfd weights list",
    "sfd preset list",
    "sfd preset use fashion-mnist",
)
ELSEWHERE = {
    "sfd init demo && cd demo": (
        "project/test_init.py::test_what_it_tells_to_type_next_works_from_a_folder_with_a_space"
    ),
    "dvc repro": "test_dvc_pipeline.py::test_it_makes_every_artifact_for_real",
    "make demo": "test_dvc_pipeline.py::test_the_demo_run_again_leaves_its_checkout_as_committed",
    "dvc exp run -S sample.delta_t=0.2": (
        "test_dvc_pipeline.py::test_a_new_offset_reruns_sampling_and_scoring_and_nothing_else"
    ),
    "sfd train --processes 2": (
        "stages/test_train.py::test_two_processes_and_their_micro_batches_give_the_model_and_the_curves_of_one"
    ),
    "sfd preset use imagenet256-xl --images /data/imagenet/train": (
        "cli/test_commands_preset.py::test_every_preset_takes_images_the_demo_too"
    ),
    "sfd play": "play/test_serve.py::test_a_project_a_saved_pipeline_and_a_transformer_by_itself_draw_the_same",
    "sfd play models/pipeline": (
        "play/test_serve.py::test_a_project_a_saved_pipeline_and_a_transformer_by_itself_draw_the_same"
    ),
    "sfd play sfd_xl --texture-vae sdvae_f16d32 --guide sfd_autoguidance_b": (
        "play/test_serve.py::test_a_project_a_saved_pipeline_and_a_transformer_by_itself_draw_the_same"
    ),
    "sfd sample --checkpoint sfd_xl --guide sfd_autoguidance_b --texture-vae sdvae_f16d32 --guidance autoguidance"
    " --num-images 64": (
        "cli/test_commands_sample.py::test_names_are_enough_for_registered_models_and_their_statistics"
    ),
    "sfd weights import 4000000.pt models/sfd_xl --texture-statistics latents_stats.pt --semantic-statistics"
    " latents_sv_stats.pt": "cli/test_commands_weights.py::test_hints_and_statistics_are_kept_with_a_transformer",
}
"""Commands with the test that runs them, on other files than the README's."""
INSTALLED = ("pip install", "apt install", "make test")
"""What makes the tests' own environment, or is this."""


def test_every_command_of_the_readme_is_run_by_a_test() -> None:
    lines = [
        line.split("#")[0].strip()
        for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
        for line in block.splitlines()
    ]
    typed = {line for line in lines if line and not line.startswith(INSTALLED)}
    assert typed == {*IN_THE_PROJECT, *ELSEWHERE}
    for place in ELSEWHERE.values():
        file, name = place.split("::")
        assert f"def {name}(" in (REPOSITORY / "tests" / file).read_text(), place


def test_the_readmes_commands_work_in_a_project(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "project"
    shutil.copytree(project, copy, symlinks=True)
    monkeypatch.chdir(copy)
    for command in IN_THE_PROJECT:
        program, *words = shlex.split(command)
        said = done(*words).out if program == "sfd" else run(copy, program, *words)
        assert said, command
    assert [len(list(Path("data", name).glob("*.png"))) for name in ("try", "two-classes")] == [64, 64]
    assert set(read_json(Path("data/two-classes/labels.json"))) == {0, 6}
    assert read_json(Path("models/slower/settings.json"))["complete"]
    with Image.open("out.png") as grid:
        assert min(grid.size) > 100

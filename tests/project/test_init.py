"""`sfd init` as people type it: a project from nothing, and nothing that was there touched."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from command_line import done, files_below, refusal_of
from pipeline_project import environment, run
from refusals import require_refusal

from sfd_cli.config import load_settings
from sfd_cli.presets import preset_text
from sfd_cli.project import PIPELINE, TELLING, WRITTEN

REPOSITORY = Path(__file__).parents[2]
STAGES = list(yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_the_pipeline_of_a_new_project_is_that_of_the_checkout() -> None:
    assert PIPELINE.read_bytes() == (REPOSITORY / "dvc.yaml").read_bytes(), "cp dvc.yaml sfd_cli/project/pipeline.yaml"


def test_an_empty_folder_becomes_a_project_that_dvc_understands(here: Path) -> None:
    said = done("init").out
    assert {path.name for path in here.iterdir()} == {*WRITTEN, ".git"}
    assert Path("params.yaml").read_text() == preset_text("demo")
    assert f"{here} is a project now" in said
    assert "  dvc repro\n" in said
    assert "  cd " not in said, "it is here already"
    # DVC reads the pipeline and names what is to be made of it; no stage is at odds with its settings.
    status = run(here, "dvc", "status", "--json")
    assert [stage for stage in STAGES if f'"{stage}"' in status] == STAGES
    assert run(here, "dvc", "config", "core.analytics").strip().lower() == "false"


def test_what_it_tells_to_type_next_works_from_a_folder_with_a_space(here: Path) -> None:
    said = done("init", "my project").out.splitlines()
    steps = [line.strip() for line in said[said.index("next:") + 1 :]]
    assert steps[-2:] == ["dvc repro", "sfd show"]
    script = " && ".join([*steps[:-2], "dvc repro --dry prepare-data"])
    ran = subprocess.run(script, shell=True, env=environment(), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "sfd prepare-data" in ran.stdout
    assert run(here / "my project", "git", "status", "--porcelain") == ""


def test_images_and_preset_of_ones_own() -> None:
    Path("photos/cat").mkdir(parents=True)
    said = done("init", "xl", "--preset", "imagenet256-xl", "--images", "photos").out
    assert str(Path("photos").resolve()) in said
    assert load_settings(Path("xl/params.yaml")).images.folder == Path("photos").resolve()
    done("init", "small", "--images", "photos")
    images = load_settings(Path("small/params.yaml")).images
    assert (images.source, images.folder, images.size) == ("folder", Path("photos").resolve(), 64)


def test_images_inside_of_the_project_stay_out_of_git(here: Path) -> None:
    Path("photos/cat").mkdir(parents=True)
    Path("photos/cat/1.png").touch()
    done("init", "--images", "photos")
    assert "photos" not in run(here, "git", "status", "--porcelain", "--untracked-files=all")


def test_inside_of_a_repository_no_other_is_begun(here: Path) -> None:
    run(here, "git", "init", "--quiet")
    done("init", "deep/project")
    assert not Path("deep/project/.git").exists()
    assert "prepare-data" in run(here / "deep" / "project", "dvc", "status", "--json")


@pytest.mark.parametrize("name", TELLING)
def test_what_is_there_is_not_overwritten(name: str) -> None:
    Path("mine").mkdir()
    Path("mine", name).write_text("mine")
    require_refusal(refusal_of("init", "mine"), "mine", name)


def test_a_second_time_it_is_refused() -> None:
    done("init")
    before = files_below(Path())
    require_refusal(refusal_of("init"), ".", "dvc.yaml", "params.yaml", ".dvc")
    assert files_below(Path()) == before


def test_bad_input_is_refused_before_anything_is_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").touch()
    require_refusal(refusal_of("init", "file"), "file", "is not a folder")
    require_refusal(refusal_of("init", "new", "--preset", "demmo"), "demmo", "'demo'")
    require_refusal(refusal_of("init", "new", "--images", "nowhere"), "--images", "nowhere")
    run(here, "git", "init", "--quiet")
    Path(".gitignore").write_text("out/\n")
    require_refusal(refusal_of("init", "out/project"), "out/project", here)
    monkeypatch.setenv("PATH", os.devnull)
    require_refusal(refusal_of("init", "new"), "git", "is not installed")


def test_from_a_wheel_and_without_a_checkout_it_does_the_same(tmp_path: Path, here: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    command = "import sfd_cli.cli, sys; print(sfd_cli.__file__); sys.argv = ['sfd', 'init']; sfd_cli.cli.main()"
    said = run(here, sys.executable, "-c", command, PYTHONPATH=str(tmp_path / "installed"))
    assert str(tmp_path / "installed") in said
    assert {path.name for path in here.iterdir()} == {*WRITTEN, ".git"}
    assert Path("dvc.yaml").read_bytes() == (REPOSITORY / "dvc.yaml").read_bytes()

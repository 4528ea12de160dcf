"""`sfd plan`: it reads settings and manifest alone, and tells how DVC keeps files here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pipeline_project import run as shell
from refusals import refusal
from tiny_project import tiny_settings, write_training_images

from sfd_cli.config import DiT
from sfd_cli.project import start_project
from sfd_cli.stages import plan


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    start_project(tmp_path, "demo")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_stage_has_images_bytes_and_time(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny_settings(
        project, sample={"num_images": 12}, dit={"steps": 3, "batch_size": 4, "width": 32, "heads": 2}
    )
    write_training_images(settings)
    monkeypatch.setattr(plan, "matrix_speed", lambda device, precision: 1e9)
    found = plan.run(settings)
    assert list(found["stages"]) == [
        "prepare-data",
        "extract-features",
        "train-semvae",
        "train-texture-vae",
        "encode-latents",
        "train",
        "train-guide",
        "sample",
        "fid",
    ]
    assert found["stages"]["train"].split()[:2] == ["12", "images"]
    assert found["stages"]["sample"].split()[:2] == ["12", "images"]
    assert set(found["memory of a training step, a whole batch on one device"]) == {"train", "train-guide"}
    assert not {path.name for path in project.iterdir()} & {"features", "dit", "samples"}, "nothing is run"


def test_without_a_manifest_it_says_what_makes_one(project: Path) -> None:
    with refusal(project / "images", "sfd prepare-data"):
        plan.run(tiny_settings(project))


def test_the_speed_is_that_of_a_matrix_product() -> None:
    speed = plan.matrix_speed(torch.device("cpu"), "fp32")
    assert 1e8 < speed < 1e14


@pytest.mark.parametrize(("kinds", "found"), [("hardlink,copy", "hardlink"), ("copy", ""), ("symlink", "symlink")])
def test_how_dvc_keeps_files_is_tried_and_not_assumed(project: Path, kinds: str, found: str) -> None:
    shell(project, "dvc", "config", "cache.type", kinds)
    before = sorted(project.iterdir())
    assert plan.link_to_cache(project) == found
    assert sorted(project.iterdir()) == before


def test_outside_of_a_project_nothing_is_shared(tmp_path_factory: pytest.TempPathFactory) -> None:
    assert plan.link_to_cache(tmp_path_factory.mktemp("bare")) == ""


@pytest.mark.parametrize(("hours", "told"), [(0.001, "4 s"), (0.5, "30 min"), (1234.5, "1,234.5 h")])
def test_times_are_told_in_units_that_fit(hours: float, told: str) -> None:
    assert plan._time(hours) == told


@pytest.mark.parametrize(("size", "told"), [(999, "999 B"), (63e9, "63 GB"), (1.03e12, "1.03 TB")])
def test_sizes_are_told_in_units_that_fit(size: float, told: str) -> None:
    assert plan._size(size) == told


def test_a_batch_that_is_accumulated_takes_the_memory_of_a_part(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "matrix_speed", lambda device, precision: 1e9)
    seen: list[int] = []
    monkeypatch.setattr(plan, "step_memory", lambda config, section, images, bf16: seen.append(images) or 0.0)
    settings = tiny_settings(project, dit={"batch_size": 64, "accumulate": 4})
    write_training_images(settings)
    plan.run(settings)
    assert seen == [16, DiT().batch_size]

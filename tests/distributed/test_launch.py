"""Several processes for one command: how many, by whom they are started, and how they end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from refusals import refusal

from sfd_cli.config import Settings, validate_settings
from sfd_cli.distributed import launch
from sfd_cli.distributed.processes import Processes

STEP = {
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variables of a launcher; those that a test sets are gone after it."""
    for name in [*os.environ]:
        if (
            name.startswith("SLURM_")
            or name in launch.OF_OTHERS
            or name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        ):
            monkeypatch.delenv(name)
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCH_CPP_LOG_LEVEL"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("processes", "device", "gpus", "expected"),
    [
        ("auto", "auto", 0, 1),
        ("auto", "auto", 8, 8),
        ("auto", "cuda", 8, 8),
        ("auto", "cuda:3", 8, 1),
        ("auto", "cpu", 8, 1),
        (2, "cpu", 0, 2),
        (1, "auto", 8, 1),
    ],
)
def test_a_process_for_every_gpu_unless_settings_say_otherwise(
    processes: int, device: str, gpus: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert launch.wanted(processes, device) == expected


@pytest.mark.parametrize("wrong", [0, -1, "all", 1.5])
def test_other_numbers_of_processes_are_refused_by_their_key(wrong: object) -> None:
    assert validate_settings({"runtime": {"processes": "3"}}, "here").runtime.processes == 3
    assert Settings().runtime.processes == "auto"
    with refusal("runtime.processes"):
        validate_settings({"runtime": {"processes": wrong}}, "here")


def test_a_step_of_slurm_is_joined_by_its_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not launch.is_member()
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames node[07-08]" ] && printf "node07\\nnode08\\n"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert launch.is_member()
    found = {name: os.environ[name] for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR")}
    assert found == {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "node07"}
    assert 1024 < int(os.environ["MASTER_PORT"]) < 32768, "below what systems give to others"


def test_torchrun_within_a_step_of_slurm_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (STEP | {"WORLD_SIZE": "16", "RANK": "9"}).items():
        monkeypatch.setenv(name, value)
    assert launch.is_member()
    assert (os.environ["WORLD_SIZE"], os.environ["RANK"]) == ("16", "9")
    assert os.environ["TORCH_CPP_LOG_LEVEL"] == "ERROR"


def test_one_task_of_slurm_is_no_step_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert not launch.is_member()


@pytest.mark.parametrize("missing", ["SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_ID", "scontrol"])
def test_a_step_that_tells_too_little_is_refused_in_a_sentence(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    for name, value in STEP.items():
        if name != missing:
            monkeypatch.setenv(name, value)
    with refusal("SLURM"):
        launch.is_member()


def test_a_mistake_in_several_processes_is_one_sentence_and_the_usual_exit_code(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"runtime": {"device": "cpu", "processes": 2}}))
    command = [sys.executable, "-m", "sfd_cli", "extract-features"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 2
    assert ran.stderr.count("error:") == 1
    assert "sfd prepare-data" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["params.yaml"]


@pytest.mark.parametrize("tasks", ["two", "4"])
def test_a_step_whose_numbers_are_none_is_refused_in_a_sentence(tasks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (STEP | {"SLURM_STEP_NUM_TASKS": tasks, "SLURM_PROCID": "first"}).items():
        monkeypatch.setenv(name, value)
    with refusal("SLURM"):
        launch.is_member()


def test_more_processes_than_gpus_are_refused_before_one_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    assert Processes(1, 3, 1).device("cuda") == torch.device("cuda", 1)
    with refusal("runtime.processes", 3, 2):
        Processes(2, 3, 2).device("auto")


@pytest.mark.parametrize("name", launch.OF_OTHERS)
def test_processes_of_mpirun_are_refused_for_each_would_believe_to_be_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1")
    assert not launch.is_member()
    monkeypatch.setenv(name, "4")
    with refusal(name, 4, "srun", "torchrun"):
        launch.is_member()
    monkeypatch.setenv("WORLD_SIZE", "4")  # where somebody gives torchrun's variables to MPI's processes
    assert launch.is_member()


def test_machines_of_a_job_that_have_nothing_to_do_are_told_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    assert not launch.is_member()
    assert not capsys.readouterr().err
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "4")
    assert not launch.is_member()
    assert "one machine of the 4" in capsys.readouterr().err


def test_a_task_of_slurm_that_sees_one_gpu_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with refusal("runtime.processes", 4, 1):
        Processes(3, 4, 3).device("cuda")
    monkeypatch.setenv("SLURM_LOCALID", "3")
    assert Processes(3, 4, 3).device("cuda") == torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert Processes(3, 4, 3).device("cuda") == torch.device("cuda", 3)

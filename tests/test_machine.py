"""How many cores a process may use, and how many threads of it read images then."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from refusals import refusal

from sfd_cli import machine
from sfd_cli.config import Runtime, load_settings
from sfd_cli.machine import cores_by_quota


def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, membership: str, files: dict[str, str]) -> None:
    """A machine of 64 cores whose control groups say this."""
    monkeypatch.setattr(machine, "PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "cores", lambda: 64)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(membership)
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
        ("0::/\n", {"cpu.max": "800000 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),  # one and a half
        ("0::/\n", {"cpu.max": "20000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "nonsense"}, 64),
        ("0::/job/step\n", {"job/cpu.max": "400000 100000\n", "job/step/cpu.max": "max 100000\n"}, 4),
        ("0::/on/the/host\n", {"cpu.max": "300000 100000\n"}, 3),  # a container's own group is its root
        ("0::/\n", {"cpu.max": "9900000 100000\n"}, 64),
        ("4:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "600000", "cpu/a/cpu.cfs_period_us": "100000"}, 6),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ("3:cpuset:/\n", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ("", {}, 64),
    ],
)
def test_a_control_group_limits_the_cores(
    membership: str, files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group(tmp_path, monkeypatch, membership, files)
    assert cores_by_quota() == cores


def test_a_system_without_control_groups_has_its_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PROC", tmp_path)
    monkeypatch.setattr(machine, "cores", lambda: 5)
    assert cores_by_quota() == 5


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system does not bind processes to cores")
def test_a_process_bound_to_a_core_has_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cores_by_quota() == Runtime().threads == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("cores", "environment", "threads"),
    [
        (2, {}, 2),
        (1, {}, 1),
        (12, {}, 12),
        (128, {}, 16),
        (64, {"LOCAL_WORLD_SIZE": "8"}, 8),
        (8, {"LOCAL_WORLD_SIZE": "16"}, 1),
        (64, {"SLURM_PROCID": "3", "SLURM_CPUS_PER_TASK": "6"}, 6),
        (64, {"SLURM_PROCID": "3", "SLURM_CPUS_PER_TASK": "24", "LOCAL_WORLD_SIZE": "4"}, 6),
        (4, {"SLURM_PROCID": "3"}, 4),
        (4, {"SLURM_CPUS_PER_TASK": "2"}, 4),  # a shell in an allocation, no task
    ],
)
def test_processes_of_a_machine_share_its_cores(
    cores: int, environment: dict[str, str], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfd_cli.config.data.cores_by_quota", lambda: cores)
    for name in ("LOCAL_WORLD_SIZE", "SLURM_PROCID", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Runtime().workers == "auto"
    assert Runtime().threads == threads
    assert [Runtime(workers=count).threads for count in (0, 2, 40)] == [0, 2, 40]


@pytest.mark.parametrize(("given", "kept"), [("auto", "auto"), ("3", 3), (0, 0), (2, 2)])
def test_a_number_of_workers_keeps_its_meaning(given: object, kept: object, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("")
    assert load_settings(path, {"runtime": {"workers": given}}).runtime.workers == kept


@pytest.mark.parametrize("given", [None, -1, 1.5, True, "many", "-1", ""])
def test_what_is_no_number_of_workers_is_told(given: object, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("")
    with refusal("runtime.workers"):
        load_settings(path, {"runtime": {"workers": given}})

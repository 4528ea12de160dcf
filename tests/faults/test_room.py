"""A full disk, a quota, an output that is read-only and few open files: a sentence, and nothing lost."""

from __future__ import annotations

import random
import shutil
from functools import partial
from pathlib import Path

import pytest
from finished_project import SECTIONS
from forks import Ended
from history import Step, lost
from ledger import Ledger
from surroundings import no_file_longer_than, no_privileges, open_files, resize, small_disk

pytestmark = pytest.mark.faults

LARGE = 1 << 30
FEW = 10


def told(stage: str, ended: Ended, *words: str) -> list[str]:
    """What is wrong with how a stage failed: it must say one sentence and show no traceback."""
    error = next((line for line in ended.said.splitlines() if line.startswith("sfd: error: ")), "")
    if ended.code not in (1, 2) or not error or "Traceback" in ended.said or not any(word in error for word in words):
        return [f"{stage} ended with {ended.code}: {ended.said}"]
    return []


@pytest.mark.parametrize("stage", SECTIONS)
def test_a_full_disk_is_an_error_and_with_room_the_stage_goes_on(
    stage: str, history: dict[str, Step], tmp_path: Path, chance: random.Random, ledger: Ledger
) -> None:
    step, disk = history[stage], tmp_path / "disk"
    taken = sum(-(-path.stat().st_size // 4096) * 4096 + 4096 for path in step.before.rglob("*"))
    for share in (0.02, chance.uniform(0.1, 0.8)):
        room = int(share * sum(-(-size // 4096) * 4096 for size in step.made.values()))
        with small_disk(disk, LARGE) as mounted:
            if not mounted:
                pytest.skip("no disk may be mounted here; a quota is tried below")
            with step.project(disk) as project:
                used = shutil.disk_usage(disk).used
                resize(disk, max(used, min(taken, used)) + max(room, 8192))
                full = step.run(project)
                there = step.begun(project)
                resize(disk, LARGE)
                again = step.run(project)
                ledger.note(
                    "a stage whose disk is full",
                    lost=[*lost(project, there, again.said), *([again.said] if again.code else [])],
                    wrong=[*told(stage, full, "is full"), *step.differences(project)],
                    seconds=again.seconds,
                )
        disk.rmdir()


@pytest.mark.parametrize("stage", SECTIONS)
def test_a_quota_is_an_error_and_with_room_the_stage_goes_on(
    stage: str, history: dict[str, Step], tmp_path: Path, chance: random.Random, ledger: Ledger
) -> None:
    step = history[stage]
    for limit in (0, *(chance.randrange(1, max(step.made.values())) for _ in range(2))):
        with step.project(tmp_path) as project:
            full = step.run(project, partial(no_file_longer_than, limit))
            there = step.begun(project)
            again = step.run(project)
            ledger.note(
                "a stage that may write no more (quota)",
                lost=[*lost(project, there, again.said), *([again.said] if again.code else [])],
                wrong=[*told(stage, full, "is full"), *step.differences(project)],
                seconds=again.seconds,
            )


@pytest.mark.parametrize("stage", SECTIONS)
def test_an_output_that_is_read_only_is_named_and_left_as_it_is(
    stage: str, history: dict[str, Step], tmp_path: Path, ledger: Ledger
) -> None:
    step = history[stage]
    with step.project(tmp_path) as project:
        locked = [
            project / name for name in ("data", "models", "metrics", "reports", "cache") if (project / name).exists()
        ]
        closed = [folder for place in locked for folder in (place, *place.rglob("*")) if folder.is_dir()]
        modes = {folder: folder.stat().st_mode for folder in [project, *closed]}
        for folder in modes:
            folder.chmod(0o555)
        refused = step.run(project, no_privileges)
        for folder, mode in modes.items():
            folder.chmod(mode)
        again = step.run(project)
        ledger.note(
            "outputs that are read-only",
            lost=[again.said] if again.code else [],
            wrong=[*told(stage, refused, "cannot be used"), *step.differences(project)],
            seconds=again.seconds,
        )


@pytest.mark.parametrize("stage", SECTIONS)
def test_with_few_open_files_a_stage_does_its_work_or_says_so(
    stage: str, history: dict[str, Step], tmp_path: Path, ledger: Ledger
) -> None:
    step = history[stage]
    for most in (64, FEW):
        with step.project(tmp_path) as project:
            few = step.run(project, partial(open_files, most))
            again = step.run(project)
            wrong = told(stage, few, "open") if few.code else []
            if most > FEW and few.code:
                wrong.append(f"{stage} cannot do with {most} files: {few.said}")
            ledger.note(
                f"64 open files, and {FEW}",
                lost=[again.said] if again.code else [],
                wrong=[*wrong, *step.differences(project)],
                seconds=again.seconds if few.code else None,
            )

"""Every stage and `dvc repro`, killed at any moment, go on to what they would have made undisturbed, byte for byte."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from finished_project import SECTIONS
from forks import Ended
from history import Step, lost, outputs, parts
from ledger import Ledger
from moments import count, watch
from pipeline_project import artifacts, create, environment, run

pytestmark = pytest.mark.faults

KILLS = int(os.environ.get("SFD_FAULT_KILLS", "100"))
REPRO = max(KILLS // 10, 1)
"""Kills of `dvc repro`; each takes as long as all that comes before it."""
EACH = max(-(-(KILLS - REPRO) // len(SECTIONS)), 1)

Kill = Callable[[Step, Path, Path, random.Random], Ended]


def at_any_time(step: Step, project: Path, tally: Path, chance: random.Random) -> Ended:
    return step.run(project, kill_after=chance.uniform(0, step.seconds))


def at_a_change(step: Step, project: Path, tally: Path, chance: random.Random) -> Ended:
    return step.run(project, partial(watch, project, tally, chance.randint(1, step.moments)))


def while_writing(step: Step, project: Path, tally: Path, chance: random.Random) -> Ended:
    """No file may get longer than some point in one of those that are made; who would write on is killed."""
    limit = chance.randrange(1, chance.choice(list(step.made.values())))

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return step.run(project, prepare)


KINDS: dict[str, Kill] = {
    "killed before or after a file is opened, renamed, removed or forced to the disk": at_a_change,
    "killed at a random moment": at_any_time,
    "killed in the middle of a write": while_writing,
}


@pytest.mark.parametrize("attempt", range(EACH))
@pytest.mark.parametrize("stage", SECTIONS)
def test_a_killed_stage_goes_on_to_the_same_bytes(
    stage: str, attempt: int, history: dict[str, Step], tmp_path: Path, chance: random.Random, ledger: Ledger
) -> None:
    step = history[stage]
    fault, kill = list(KINDS.items())[attempt % len(KINDS)]
    with step.project(tmp_path) as project:
        killed = kill(step, project, tmp_path / "tally", chance)
        there = step.begun(project)
        again = step.run(project)
        failed = [f"{stage} ended with {again.code}: {again.said}"] if again.code else []
        ledger.note(
            f"a stage {fault}",
            tried=int(killed.code < 0),  # at the end of its time it may be done already
            lost=[*lost(project, there, again.said), *failed],
            wrong=[f"{stage} after {killed}: {name}" for name in step.differences(project)],
            seconds=again.seconds,
        )


def test_a_killed_repro_goes_on_to_the_same_bytes(tmp_path: Path, chance: random.Random, ledger: Ledger) -> None:
    """Half of the kills at random moments, half when some file is changed, by a stage or by DVC itself."""
    undisturbed, disturbed = create(tmp_path / "undisturbed"), create(tmp_path / "disturbed")
    tally = tmp_path / "tally"
    began = time.monotonic()
    run(undisturbed, "dvc", "repro", **watched(undisturbed, tally))
    seconds, moments = time.monotonic() - began, count(tally)
    for attempt in range(REPRO):
        tally.unlink(missing_ok=True)
        if attempt % 2:
            changes = watched(disturbed, tally, chance.randint(1, max(moments // REPRO, 2)))
            killed_repro(disturbed, seconds, **changes)
        else:
            killed_repro(disturbed, chance.uniform(0, 2 * seconds / REPRO))
        ledger.note("`dvc repro` killed", seconds=None)
    there = parts(disturbed)
    began = time.monotonic()
    said = run(disturbed, "dvc", "repro")
    made, wanted = outputs_of_dvc(disturbed), outputs_of_dvc(undisturbed)
    wrong = sorted(name for name in made.keys() | wanted.keys() if made.get(name) != wanted.get(name))
    ledger.note(
        "`dvc repro` killed", tried=0, lost=lost(disturbed, there, said), wrong=wrong, seconds=time.monotonic() - began
    )


def watched(folder: Path, tally: Path, fatal: int | None = None) -> dict[str, str]:
    site = str(Path(__file__).parent / "site")
    python = os.pathsep.join([site, os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else [site])
    changes = {"PYTHONPATH": python, "SFD_FAULT_FOLDER": str(folder), "SFD_FAULT_TALLY": str(tally)}
    return changes | ({} if fatal is None else {"SFD_FAULT_MOMENT": str(fatal)})


def killed_repro(folder: Path, seconds: float, **changes: str) -> None:
    """Kill `dvc repro` and all that it started, after so many seconds or when it does so itself."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(
        ["dvc", "repro"], cwd=folder, env=environment(**changes), start_new_session=True, **quiet
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def outputs_of_dvc(folder: Path) -> dict[str, str]:
    return artifacts(folder) | {
        name: digest for name, digest in outputs(folder).items() if name.startswith(("metrics/", "reports/"))
    }

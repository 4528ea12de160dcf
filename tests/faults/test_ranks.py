"""One of two processes dies or hangs, or both are told to stop: the run ends or waits, and goes on as it would have."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from history import Step, outputs
from ledger import Ledger
from pipeline_project import environment

pytestmark = pytest.mark.faults

STUCK = 240.0


@dataclass
class Run:
    """A stage in two processes."""

    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(cls, project: Path, stage: str) -> Run:
        log = project.with_name(f"{stage}.log")
        with open(log, "wb") as said:
            changes = {"SFD_CACHE": str(project / "cache"), "HF_HUB_OFFLINE": "1"}
            process = subprocess.Popen(
                [sys.executable, "-m", "sfd_cli", stage, "--processes", "2"],
                cwd=project,
                env=environment(**changes),
                stdout=said,
                stderr=said,
            )
        return cls(process, log)

    def ranks(self) -> list[int]:
        """The two processes, once they are there."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        while self.process.poll() is None:
            found = {rank_of(int(child)): int(child) for child in children.read_text().split()}
            if found.keys() >= {0, 1}:
                return [found[0], found[1]]
            time.sleep(0.02)
        raise AssertionError(self.log.read_text())

    def wait_for(self, project: Path, moment: str) -> None:
        """Until a file of this name is there."""
        while not list(project.glob(moment)):
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.005)

    def give_up(self, ranks: list[int]) -> None:
        """Kill all of it."""
        for process in (self.process.pid, *ranks):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def end(self) -> tuple[int, float]:
        """Exit code, and seconds until then."""
        began = time.monotonic()
        return self.process.wait(STUCK), time.monotonic() - began


def rank_of(process: int) -> int | None:
    with suppress(OSError):
        for entry in Path(f"/proc/{process}/environ").read_bytes().split(b"\0"):
            if entry.startswith(b"RANK="):
                return int(entry[5:])
    return None


@pytest.fixture(scope="module")
def undisturbed(history: dict[str, Step], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    project = tmp_path_factory.mktemp("two") / "project"
    shutil.copytree(history["train"].before, project)
    run = Run.start(project, "train")
    assert run.end()[0] == 0, run.log.read_text()
    yield outputs(project)
    shutil.rmtree(project)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("moment", ["models/dit/settings.json", "models/.checkpoints/dit/*/step-0000004"])
def test_a_dead_rank_ends_the_run_and_it_goes_on(
    rank: int, moment: str, history: dict[str, Step], undisturbed: dict[str, str], tmp_path: Path, ledger: Ledger
) -> None:
    with history["train"].project(tmp_path) as project:
        run = Run.start(project, "train")
        victim = run.ranks()[rank]
        run.wait_for(project, moment)
        os.kill(victim, signal.SIGKILL)
        code, seconds = run.end()
        wrong = [] if code == 1 and seconds < 60 else [f"the run ended with {code} after {seconds:.0f} s"]
        if f"process {rank} of 2: was ended by SIGKILL" not in run.log.read_text():
            wrong.append(run.log.read_text())
        went_on(project, undisturbed, ledger, "a process of torchrun that dies", wrong)


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_stuck_rank_is_waited_for_and_a_run_that_is_given_up_goes_on(
    goes_on: bool, history: dict[str, Step], undisturbed: dict[str, str], tmp_path: Path, ledger: Ledger
) -> None:
    with history["train"].project(tmp_path) as project:
        run = Run.start(project, "train")
        ranks = run.ranks()
        run.wait_for(project, "models/dit/settings.json")
        os.kill(ranks[1], signal.SIGSTOP)
        time.sleep(3)
        waits = run.process.poll() is None
        if goes_on:
            os.kill(ranks[1], signal.SIGCONT)
        else:
            run.give_up(ranks)
        code, _ = run.end()
        wrong = [] if waits and bool(code) != goes_on else [f"the run ended with {code}: {run.log.read_text()}"]
        went_on(project, undisturbed, ledger, "a process of torchrun that hangs", wrong)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_stop_writes_a_checkpoint_and_goes_on(
    number: signal.Signals, history: dict[str, Step], undisturbed: dict[str, str], tmp_path: Path, ledger: Ledger
) -> None:
    with history["train"].project(tmp_path) as project:
        run = Run.start(project, "train")
        run.ranks()
        run.wait_for(project, "models/dit/settings.json")
        run.process.send_signal(number)
        code, seconds = run.end()
        wrong = [] if code == 128 + number and seconds < 60 else [f"the run ended with {code} after {seconds:.0f} s"]
        went_on(project, undisturbed, ledger, "two processes that are told to stop", wrong)


def went_on(project: Path, undisturbed: dict[str, str], ledger: Ledger, fault: str, wrong: list[str]) -> None:
    began = time.monotonic()
    run = Run.start(project, "train")
    code, _ = run.end()
    found = outputs(project)
    wrong += [name for name in found.keys() | undisturbed.keys() if found.get(name) != undisturbed.get(name)]
    lost = [run.log.read_text()] if code else []
    ledger.note(fault, lost=lost, wrong=wrong, seconds=time.monotonic() - began)

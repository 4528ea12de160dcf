"""Processes that watch one another: who is stopped, stuck or gone is named in time, and who takes its time is not."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from refusals import refusal
from together import Member, kill, start, wait_for

from sfd_cli.distributed import watch
from sfd_cli.distributed.processes import Processes
from sfd_cli.distributed.watch import WATCH, in_time

PATIENCE = 2.0
HOST = socket.gethostname()


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., list[Member]]]:
    """Starts two processes with little patience; kills what is left of them."""
    members: list[Member] = []

    def begun(work: Callable[[Processes], None], **options: object) -> list[Member]:
        members.extend(start(tmp_path, work, SFD_PATIENCE=str(PATIENCE), **options))  # type: ignore[arg-type]
        return members

    yield begun
    kill(members)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_process_ends_the_other_with_its_name_in_time_and_is_ended(
    victim: int, tmp_path: Path, begin: Callable[..., list[Member]]
) -> None:
    def work(processes: Processes) -> None:
        processes.barrier()
        (tmp_path / f"at-work-{processes.rank}").touch()
        if processes.rank == victim:
            time.sleep(600)
        processes.barrier()

    members = begin(work)
    for rank in range(2):
        wait_for(tmp_path / f"at-work-{rank}")
    os.kill(members[victim].process.pid or 0, signal.SIGSTOP)
    began = time.monotonic()
    code, said = members[1 - victim].end()
    assert time.monotonic() - began < 10 * PATIENCE
    assert code == 1
    # The first process keeps the store, as under srun; under torchrun its agent does.
    named = f"process 1 ({HOST}) of 2: not heard of for 2 s" if victim else "where the processes meet: no answer for 2"
    assert f"sfd: error: {'127.0.0.1' * (not victim)}" in said
    assert named in said
    assert said.count("error:") == 1
    if victim:
        assert members[1].end()[0] == 1, "it was woken to hear of its end"


def test_a_process_that_is_stopped_for_less_is_waited_for(tmp_path: Path, begin: Callable[..., list[Member]]) -> None:
    def work(processes: Processes) -> None:
        (tmp_path / f"at-work-{processes.rank}").touch()
        for _ in range(10):
            processes.barrier()
            time.sleep(0.1)

    members = begin(work)
    for rank in range(2):
        wait_for(tmp_path / f"at-work-{rank}")
    os.kill(members[1].process.pid or 0, signal.SIGSTOP)
    time.sleep(PATIENCE / 2)
    os.kill(members[1].process.pid or 0, signal.SIGCONT)
    assert [member.end() for member in members] == [(0, ""), (0, "")]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_all_stopped_at_once_and_woken_one_after_the_other_go_on(
    order: tuple[int, int], tmp_path: Path, begin: Callable[..., list[Member]]
) -> None:
    def work(processes: Processes) -> None:
        (tmp_path / f"at-work-{processes.rank}").touch()
        for _ in range(10):
            processes.barrier()
            time.sleep(0.1)

    members = begin(work)
    for rank in range(2):
        wait_for(tmp_path / f"at-work-{rank}")
    for rank in reversed(order):  # so that the first to wake has seen the other stand still
        os.kill(members[rank].process.pid or 0, signal.SIGSTOP)
        time.sleep(PATIENCE / 4)
    time.sleep(2 * PATIENCE)
    for rank in order:
        os.kill(members[rank].process.pid or 0, signal.SIGCONT)
        time.sleep(PATIENCE / 3)
    assert [member.end() for member in members] == [(0, ""), (0, "")]


def steps(processes: Processes, stuck_in: str = "", seconds: float = 600) -> None:
    """Four steps, of which process 1 is stuck in the fourth, or takes its time in it."""

    def batches() -> Iterator[int]:
        for number in range(4):
            if processes.rank == 1 and number == 3 and stuck_in == "data":
                time.sleep(seconds)
            yield number

    for number in processes.in_time(batches()):
        late = processes.rank == 1 and number == 3
        if late and stuck_in == "step":
            time.sleep(seconds)
        processes.any(False)
        with processes.at_leisure():
            if late and stuck_in == "checkpoint":
                time.sleep(seconds)
    processes.barrier()


@pytest.mark.parametrize("place", ["data", "step"])
def test_a_process_that_takes_no_step_is_named_although_it_counts(
    place: str, begin: Callable[..., list[Member]]
) -> None:
    def work(processes: Processes) -> None:
        steps(processes, place)

    code, said = begin(work)[0].end()
    assert code == 1
    assert f"sfd: error: process 1 ({HOST}) of 2: no step for 2 s" in said
    assert said.count("error:") == 1


def test_a_checkpoint_may_take_longer_than_a_step(begin: Callable[..., list[Member]]) -> None:
    def work(processes: Processes) -> None:
        steps(processes, "checkpoint", 3 * PATIENCE)

    assert [member.end() for member in begin(work)] == [(0, ""), (0, "")]


def test_a_process_that_dies_is_named_by_who_waits_for_it(begin: Callable[..., list[Member]]) -> None:
    def work(processes: Processes) -> None:
        processes.barrier()
        if processes.rank == 1:
            os._exit(9)
        processes.barrier()

    code, said = begin(work)[0].end()
    print(repr(said))
    assert code == 1
    assert f"sfd: error: process 1 ({HOST}): ended, or cannot be reached" in said


def test_steps_may_take_longer_where_the_second_one_did(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []
    now = [0.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])
    taken = iter([500.0, 30.0, 1.0, 1.0])
    limits = []
    for _ in in_time(range(4)):
        limits.append(WATCH._limit)
        now[0] += next(taken)
    assert limits == [None, None, 300.0, 300.0]
    assert WATCH._limit is None


@pytest.mark.parametrize("wrong", ["0", "soon", "-5", "inf", "nan"])
def test_a_patience_that_is_none_is_refused(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFD_PATIENCE", wrong)
    with refusal("SFD_PATIENCE", wrong):
        watch.patience()


def test_there_is_patience_for_two_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SFD_PATIENCE", raising=False)
    assert watch.patience() == 120


@pytest.mark.parametrize("says_so", [True, False])
def test_one_that_has_done_its_work_is_not_missed_by_those_that_have_more(
    says_so: bool, begin: Callable[..., list[Member]]
) -> None:
    def work(processes: Processes) -> None:
        processes.barrier()
        if processes.rank == 1:
            WATCH.end(done=True) if says_so else atexit._run_exitfuncs()
            os._exit(0)
        time.sleep(2 * PATIENCE)

    assert [member.end() for member in begin(work)] == [(0, ""), (0, "")]

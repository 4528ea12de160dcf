"""Rows reach a tracker while a training goes on, and no tracker reaches the training."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from command_line import files_below
from refusals import refusal
from runs import KilledError, Memory, in_memory, kill_at, settings_of, tables, train, wait_until
from training_task import assert_same

from sfd_cli.files import write_json
from sfd_cli.tables import TRACKERS
from sfd_cli.trackers import sending
from sfd_cli.trackers.identity import held
from sfd_cli.trackers.logged import Logged
from sfd_cli.trackers.sending import tracked
from sfd_cli.trackers.tracker import Tracker, require_trackers


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "INTERVAL", 0.005)
    monkeypatch.setattr(sending, "AGAIN", 0.005)


def test_a_tracker_gets_every_row_of_every_table(tmp_path: Path) -> None:
    with in_memory(Memory()) as memory:
        train(tmp_path, "memory")
    assert memory.has == tables(tmp_path)
    assert {"loss", "error", "gradient_norm", "learning_rate", "validation", "images_per_second"} == memory.has.keys()
    assert (len(memory.runs), memory.closed, memory.summary) == (1, 1, {})
    assert memory.runs[0].name == "test dit"
    assert memory.runs[0].project == "tests"


def test_rows_come_while_the_training_goes_on_and_only_of_steps_that_are_whole(tmp_path: Path) -> None:
    seen: list[int] = []

    def wait(step: int, model: object) -> None:
        wait_until(lambda: len(memory.has.get("images_per_second", [])) == step)  # the last of a step
        seen.append(len(memory.has.get("validation", [])))

    with in_memory(Memory()) as memory:
        train(tmp_path, "memory", on_step=[wait], steps=6)
    assert seen == [0, 0, 0, 0, 1, 2]


@pytest.mark.parametrize("killed_at", [3, 9, 14])
def test_rows_after_the_checkpoint_are_there_once(tmp_path: Path, killed_at: int) -> None:
    with in_memory(Memory()) as memory:
        with pytest.raises(KilledError):
            train(tmp_path / "cut", "memory", on_step=[kill_at(killed_at)])
        train(tmp_path / "cut", "memory")
    train(tmp_path / "whole")
    found, resumed, whole = memory.has, tables(tmp_path / "cut"), tables(tmp_path / "whole")
    for curves in (found, resumed, whole):
        curves.pop("images_per_second")
    assert found == resumed == whole
    assert {run.id for run in memory.runs} == {memory.runs[0].id}


def failing_at(*turns: int) -> Memory:
    """A tracker that fails when it is called for the n-th time."""
    calls: list[str] = []

    def fail(what: str) -> None:
        calls.append(what)
        if len(calls) in turns:
            raise ConnectionError(f"no\nroute {what}")

    return Memory(fail=fail)


@pytest.mark.parametrize("turns", [(1,), (2, 4, 9), (1, 2, 3, 4, 5), tuple(range(6, 20))])
def test_a_tracker_that_comes_back_gets_what_it_lacks_and_its_failures_are_told_once(
    tmp_path: Path, turns: tuple[int, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with in_memory(failing_at(*turns)) as memory:
        train(tmp_path, "memory")
        with tracked(settings_of(tmp_path, "memory"), "dit", is_main=True):
            pass  # and once more, where the end of the training came too soon
    assert memory.has == tables(tmp_path)
    told = [line for line in capsys.readouterr().err.splitlines() if "memory" in line and "images/s" not in line]
    assert 1 <= len(told) <= 2, "once for the training, and once for what came after it"
    assert all("ConnectionError: no route" in line and "sfd track --to memory" in line for line in told)


def always(what: str) -> None:
    raise ConnectionError("gone")


def test_a_tracker_that_always_fails_leaves_the_bytes_of_the_training_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = train(tmp_path / "plain")
    with in_memory(Memory(fail=always)):
        tracked_model = train(tmp_path / "tracked", "memory")
    assert_same(plain, tracked_model)
    assert files_below(tmp_path / "plain" / "checkpoints") == files_below(tmp_path / "tracked" / "checkpoints")
    assert files_below(tmp_path / "plain" / "metrics" / "dit") == files_below(tmp_path / "tracked" / "metrics" / "dit")
    assert len([line for line in capsys.readouterr().err.splitlines() if "memory cannot" in line]) == 1


def test_a_training_comes_to_its_end_though_a_tracker_never_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sending, "PATIENCE", 0.05)
    answer = threading.Event()
    with in_memory(Memory(fail=lambda what: answer.wait(60))) as memory:  # type: ignore[arg-type,return-value]
        train(tmp_path, "memory")
        assert memory.has == {}
        assert "has not taken everything" in capsys.readouterr().err
        answer.set()
        wait_until(lambda: memory.closed == 1)
    assert memory.has == tables(tmp_path)


def test_one_tracker_does_not_wait_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "PATIENCE", 0.05)
    answer = threading.Event()
    with (
        in_memory(Memory(fail=lambda what: answer.wait(60)), "stuck"),  # type: ignore[arg-type,return-value]
        in_memory(Memory()) as memory,
    ):
        train(tmp_path, "stuck", "memory", on_step=[lambda step, model: wait_until(lambda: "loss" in memory.has)])
        wait_until(lambda: memory.closed == 1)
        answer.set()
    assert memory.has == tables(tmp_path)


def test_what_a_kill_kept_from_being_sent_is_sent_though_no_step_is_left(tmp_path: Path) -> None:
    train(tmp_path)
    with in_memory(Memory()) as memory:
        train(tmp_path, "memory")
    assert memory.has == tables(tmp_path)


def test_scores_come_at_the_end(tmp_path: Path) -> None:
    train(tmp_path, steps=3)
    with in_memory(Memory()) as memory, tracked(settings_of(tmp_path, "memory"), "dit", is_main=True) as feed:
        feed.scores = {"fd": 9.5, "fid": None, "notes": ["few"], "is_clear": True}
    assert memory.summary == {"fd": 9.5}


def test_only_the_first_process_sends(tmp_path: Path) -> None:
    with in_memory(Memory()) as memory, tracked(settings_of(tmp_path, "memory"), "dit", is_main=False) as feed:
        assert feed.on_step == []
    assert memory.runs == []
    assert not (tmp_path / "metrics").exists()


def test_without_trackers_nothing_is_begun(tmp_path: Path) -> None:
    before = threading.active_count()
    with tracked(settings_of(tmp_path), "dit", is_main=True) as feed:
        assert (feed.on_step, threading.active_count()) == ([], before)
    assert not (tmp_path / "metrics").exists()


def test_a_run_that_another_process_sends_is_not_sent_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with in_memory(Memory()) as memory, held(Logged(settings_of(tmp_path), "dit")):
        train(tmp_path, "memory", steps=2)
    assert memory.runs == []
    assert "another process sends" in capsys.readouterr().err


def test_where_nothing_can_be_written_beside_the_metrics_the_training_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "trackers").write_text("a file of somebody's")
    with in_memory(Memory()) as memory:
        train(tmp_path, "memory", steps=2)
    assert memory.runs == []
    assert len(tables(tmp_path)["loss"]) == 2
    assert "are sent nowhere" in capsys.readouterr().err


def test_a_refusal_before_the_first_step_sends_nothing(tmp_path: Path) -> None:
    def refused() -> None:
        with tracked(settings_of(tmp_path, "memory"), "dit", is_main=True):
            raise KilledError

    with in_memory(Memory()) as memory, pytest.raises(KilledError):
        refused()
    assert memory.runs == []


def test_a_tracker_that_is_not_installed_is_told_with_what_to_type(tmp_path: Path) -> None:
    TRACKERS.add("nowhere", Tracker(Memory().open, package="no_such_package_anywhere"))
    try:
        with refusal("metrics.trackers", "no_such_package_anywhere", 'pip install "sfd-cli[nowhere]"'):
            require_trackers(settings_of(tmp_path, "nowhere"))
    finally:
        TRACKERS.remove("nowhere")


def test_scores_of_a_file_go_with_a_finished_run(tmp_path: Path) -> None:
    write_json(tmp_path / "metrics" / "fid.json", {"fd": 1.5})
    assert Logged(settings_of(tmp_path), "dit").scores == {"fd": 1.5}

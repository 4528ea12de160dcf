"""Checkpoints written beside training: the bytes of the moment, one at a time, and no failure goes by unseen."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from command_line import files_below
from refusals import refusal
from test_checkpoints import state
from test_fit import fit
from training_task import assert_same

from sfd_cli.errors import StageFailure
from sfd_cli.training import checkpoint_writer
from sfd_cli.training.checkpoint_writer import CheckpointWriter
from sfd_cli.training.checkpoints import Checkpoints, TrainingState


@pytest.fixture(autouse=True)
def _all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_writer, "LARGE", 0)


def test_what_is_written_is_the_state_when_it_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_write, original = threading.Event(), Checkpoints.write

    def write(checkpoints: Checkpoints, found: TrainingState) -> None:
        assert threading.current_thread() is not threading.main_thread()
        may_write.wait(20)
        original(checkpoints, found)

    Checkpoints(tmp_path / "at once").save(state(5))
    monkeypatch.setattr(Checkpoints, "write", write)
    changing = state(5)
    with CheckpointWriter(Checkpoints(tmp_path / "beside")) as writer:
        writer.save(changing)
        for tensor in changing.tensors:
            tensor.zero_()
        assert not (tmp_path / "beside").exists()
        may_write.set()
    assert files_below(tmp_path / "beside") == files_below(tmp_path / "at once")


def test_one_is_written_at_a_time_and_all_are_when_the_block_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, original = list[tuple[str, int]](), Checkpoints.write

    def write(checkpoints: Checkpoints, found: TrainingState) -> None:
        seen.append(("from", found.step))
        time.sleep(0.05)
        original(checkpoints, found)
        seen.append(("to", found.step))

    monkeypatch.setattr(Checkpoints, "write", write)
    with CheckpointWriter(Checkpoints(tmp_path)) as writer:
        for step in (1, 2, 3):
            writer.save(state(step))
            assert ("to", step - 1) in [*seen, ("to", 0)]
    assert seen == [(when, step) for step in (1, 2, 3) for when in ("from", "to")]
    assert Checkpoints(tmp_path).steps() == [2, 3]


@pytest.mark.parametrize("calls", [["save", "save"], ["save", "wait"], ["save"]])
def test_what_a_write_fails_with_is_raised_by_the_next_call_or_at_the_end(tmp_path: Path, calls: list[str]) -> None:
    (tmp_path / "file").touch()

    def write() -> None:
        with CheckpointWriter(Checkpoints(tmp_path / "file")) as writer:
            for call in calls:
                writer.save(state(5)) if call == "save" else writer.wait()

    with pytest.raises(FileExistsError):
        write()


def test_another_error_is_not_hidden_by_one_of_the_write(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    def write() -> None:
        with CheckpointWriter(Checkpoints(tmp_path / "file")) as writer:
            writer.save(state(5))
            raise KeyError

    with pytest.raises(KeyError):
        write()


def test_weights_that_are_not_finite_are_refused_at_once(tmp_path: Path) -> None:
    broken = state(20)
    broken.model["weight"][0, 0] = torch.nan
    with CheckpointWriter(Checkpoints(tmp_path)) as writer, refusal(tmp_path / "step-0000020", kind=StageFailure):
        writer.save(broken)
    assert Checkpoints(tmp_path).steps() == []


def test_a_failed_write_ends_the_training_before_more_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, validated = Checkpoints.write, list[int]()

    def write(checkpoints: Checkpoints, found: TrainingState) -> None:
        if found.step == 10:
            raise OSError("the disk is full")
        original(checkpoints, found)

    monkeypatch.setattr(Checkpoints, "write", write)
    with pytest.raises(OSError, match="full"):
        fit(tmp_path, validate=lambda model: {"validation": float(len(validated.append(1) or validated))})
    assert len(validated) == 2, "at 5 and 10, and not at 12"
    assert Checkpoints(tmp_path / "checkpoints").steps() == [5]


def test_a_run_stopped_while_a_checkpoint_is_written_has_that_and_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(whole := tmp_path / "whole")
    stopping, original = threading.Event(), Checkpoints.write

    def write(checkpoints: Checkpoints, found: TrainingState) -> None:
        if found.step == 5:
            stopping.wait(20)
        original(checkpoints, found)

    def stop(step: int, model: torch.nn.Module) -> None:
        if step == 6:
            assert Checkpoints(tmp_path / "stopped" / "checkpoints").steps() == []
            os.kill(os.getpid(), signal.SIGTERM)
            stopping.set()

    monkeypatch.setattr(Checkpoints, "write", write)
    with pytest.raises(SystemExit):
        fit(stopped := tmp_path / "stopped", on_step=[stop])
    assert Checkpoints(stopped / "checkpoints").steps() == [5, 7]
    assert_same(fit(whole).ema, fit(stopped).ema)
    assert files_below(whole / "checkpoints" / "step-0000012") == files_below(stopped / "checkpoints" / "step-0000012")

"""TensorBoard reads back what the TSVs have, however often the training was killed."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from runs import KilledError, as_float32, event_files, kill_at, killed, settings_of, tables, train

from sfd_cli.trackers.sending import tracked
from sfd_cli.trackers.tensorboard import TENSORBOARD
from sfd_cli.trackers.tracker import Entry, Run


@pytest.mark.parametrize("kills", [(9,), pytest.param((8, 13, 22), marks=pytest.mark.slow)], ids=["once", "thrice"])
def test_event_files_read_back_equal_the_tables_after_kills(tmp_path: Path, kills: tuple[int, ...]) -> None:
    for step in kills:
        killed(tmp_path, step, "tensorboard")
    train(tmp_path, "tensorboard")
    assert event_files(tmp_path) == as_float32(tables(tmp_path))
    train(tmp_path / "whole")
    (_, whole), (_, found) = (
        (curves.pop("images_per_second"), curves) for curves in (tables(tmp_path / "whole"), tables(tmp_path))
    )
    assert found == whole


def test_a_resume_in_the_same_second_has_no_row_twice(tmp_path: Path) -> None:
    for step in (7, 12, 18):
        with pytest.raises(KilledError):
            train(tmp_path, "tensorboard", on_step=[kill_at(step)])
    train(tmp_path, "tensorboard")
    assert event_files(tmp_path) == as_float32(tables(tmp_path))


def test_grids_scores_and_settings_are_there_too(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Image.new("RGB", (6, 4), (255, 0, 0)).save(tmp_path / "grid.png")
    writer = TENSORBOARD.open(Run("ab12", "dit", "mine", None, tmp_path, {"dit.width": 32, "dit.knots": [0.5]}))
    writer.log([Entry(3, {"loss": 0.5}, {"samples": tmp_path / "grid.png"})])
    writer.scores(7, {"fd": 2.5})
    writer.close()
    read = EventAccumulator(str(tmp_path / "tensorboard" / "dit-ab12"))
    read.Reload()
    (picture,) = read.Images("samples")
    assert (picture.step, picture.width, picture.height) == (3, 6, 4)
    assert [(one.step, one.value) for one in read.Scalars("scores/fd")] == [(7, 2.5)]
    (text,) = read.Tensors("settings/text_summary")
    assert b"dit.width: 32" in text.tensor_proto.string_val[0]


def test_a_run_of_other_settings_stays_beside_it(tmp_path: Path) -> None:
    train(tmp_path, "tensorboard", steps=3)
    (tmp_path / "metrics" / "trackers" / "dit.json").unlink()
    with tracked(settings_of(tmp_path, "tensorboard"), "dit", is_main=True):
        pass
    assert len(list((tmp_path / "metrics" / "trackers" / "tensorboard").glob("dit-*/events*"))) == 2

"""Weights & Biases offline has the rows of the TSVs; a server that answers 500 costs a warning and no byte."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from command_line import files_below
from PIL import Image
from refusals import refusal
from runs import Curves, KilledError, kill_at, refusing, settings_of, tables, train

from sfd_cli.trackers import sending, wandb
from sfd_cli.trackers.tracker import Entry, Run, require_trackers

pytestmark = pytest.mark.slow  # W&B starts a process of its own
BLOCK = 32768


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(sending, "INTERVAL", 0.05)
    monkeypatch.setattr(sending, "PATIENCE", 300.0)
    monkeypatch.setattr(sending, "HURRY", 300.0)
    yield
    import_module("wandb").teardown()  # it reads its environment once


def records(root: Path) -> list[Any]:
    """What the only offline run below a folder holds, as `wandb sync` reads it: a log of LevelDB."""
    from wandb.proto.wandb_internal_pb2 import Record

    import_module("wandb").teardown()  # its own process, which writes to the file until it ends, after a run has too
    (path,) = root.glob("**/offline-run-*/*.wandb")
    return [Record.FromString(part) for part in _parts(path.read_bytes())]


def _parts(content: bytes) -> Iterator[bytes]:
    place, gathered = 7, b""
    while place + 7 <= len(content):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        _, size, kind = struct.unpack("<IHB", content[place : place + 7])
        gathered += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield gathered
            gathered = b""


def rows_of(found: list[Any]) -> Curves:
    rows: Curves = {}
    for record in found:
        if record.WhichOneof("record_type") == "history":
            items = [item for item in record.history.item if len(item.nested_key) <= 1]  # no parts of pictures
            values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}
            for name, value in values.items():
                if not name.startswith("_") and isinstance(value, float | int):
                    rows.setdefault(name, []).append((values["_step"], float(value)))
    return rows


def test_a_resumed_run_has_the_rows_of_the_tables_and_the_bytes_of_one_without(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        train(tmp_path / "sent", "wandb", on_step=[kill_at(9)])
    train(tmp_path / "sent", "wandb")
    train(tmp_path / "plain")
    assert rows_of(records(tmp_path)) == tables(tmp_path / "sent")
    assert files_below(tmp_path / "plain" / "checkpoints") == files_below(tmp_path / "sent" / "checkpoints")


def test_settings_grids_and_scores_go_too(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "grid.png")
    writer = wandb.WANDB.open(Run("ab12", "dit", "mine", "tests", tmp_path, {"dit.width": 32}))
    writer.log([Entry(3, {"loss": 0.5}, {"samples": tmp_path / "grid.png"})])
    writer.scores(7, {"fd": 2.5})
    writer.close()
    found = records(tmp_path)
    (run,) = [record.run for record in found if record.WhichOneof("record_type") == "run"][:1]
    assert (run.run_id, run.display_name, run.run_group, run.job_type) == ("ab12", "mine dit", "mine", "dit")
    assert {item.key: item.value_json for item in run.config.update}["dit.width"] == "32"
    assert rows_of(found) == {"loss": [(3, 0.5)]}
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/images/*.png"))
    assert any(
        "2.5" in item.value_json
        for record in found
        if record.WhichOneof("record_type") == "summary"
        for item in record.summary.update
    )


def test_a_server_that_answers_500_leaves_bytes_alone_and_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wandb, "SECONDS", 3.0)
    train(tmp_path / "plain")
    with refusing() as server:
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        train(tmp_path / "sent", "wandb", on_step=[server.let_go_at_the_end])
    assert server.answered_before_the_end == 0, "and all steps were taken"
    assert files_below(tmp_path / "plain" / "checkpoints") == files_below(tmp_path / "sent" / "checkpoints")
    assert files_below(tmp_path / "plain" / "metrics" / "dit") == files_below(tmp_path / "sent" / "metrics" / "dit")
    assert len([line for line in capsys.readouterr().err.splitlines() if "wandb cannot" in line]) == 1


def test_where_nobody_is_logged_in_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE")
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with refusal("metrics.trackers", "wandb login", "WANDB_MODE=offline"):
        require_trackers(settings_of(tmp_path, "wandb"))

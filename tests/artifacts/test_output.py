"""A stage's output folder: fingerprinted, resumed, put aside when other settings made it, never shared."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sfd_cli.artifacts.fingerprints import upstream_fingerprint
from sfd_cli.artifacts.output import StageOutput
from sfd_cli.errors import UserError


def output(tmp_path: Path, **settings: Any) -> StageOutput:
    return StageOutput(tmp_path / "artifact", "demo-stage", settings, {"images": "abc"}, tmp_path / "metrics")


def write(tmp_path: Path, name: str, finish: bool, **settings: Any) -> None:
    with output(tmp_path, **settings) as held:
        (held.folder / name).write_text(name)
        if finish:
            held.finish(count=3)


def test_a_finished_output_is_recognised_with_its_facts(tmp_path: Path) -> None:
    write(tmp_path, "file", finish=True, seed=0)
    with output(tmp_path, seed=0) as held:
        assert held.complete
        assert held.facts == {"count": 3}


def test_an_unfinished_output_of_the_same_settings_is_resumed(tmp_path: Path) -> None:
    write(tmp_path, "half", finish=False, seed=0)
    with output(tmp_path, seed=0) as held:
        assert held.resumed
        assert not held.complete
        assert (held.folder / "half").exists()


def test_an_output_of_other_settings_is_put_aside_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "old", finish=True, seed=0)
    write(tmp_path, "new", finish=False, seed=1)
    said = capsys.readouterr().err
    assert "seed 0 -> 1" in said
    aside = [path for path in tmp_path.iterdir() if path.name.startswith("artifact.")]
    assert [(path / "old").exists() for path in aside] == [True]
    assert sorted(path.name for path in (tmp_path / "artifact").iterdir()) == ["new", "settings.json"]


def test_under_dvc_a_finished_output_makes_room_because_the_cache_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_STAGE", "demo-stage")
    write(tmp_path, "old", finish=True, seed=0)
    write(tmp_path, "new", finish=True, seed=1)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("artifact.")] == []
    assert not (tmp_path / "artifact" / "old").exists()


def test_under_dvc_what_was_finished_by_hand_is_kept_because_no_cache_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "old", finish=True, seed=0)
    monkeypatch.setenv("DVC_STAGE", "demo-stage")
    write(tmp_path, "new", finish=True, seed=1)
    assert [(path / "old").exists() for path in tmp_path.glob("artifact.*")] == [True]


@pytest.mark.parametrize("damage", ["remove", "truncate"])
def test_an_output_that_lost_a_file_is_not_called_finished(tmp_path: Path, damage: str) -> None:
    write(tmp_path, "file", finish=True, seed=0)
    path = tmp_path / "artifact" / "file"
    path.unlink() if damage == "remove" else path.write_text("")
    with output(tmp_path, seed=0) as held:
        assert held.resumed
        assert not held.complete


def test_what_a_killed_writer_left_under_a_temporary_name_is_removed(tmp_path: Path) -> None:
    write(tmp_path, "half", finish=False, seed=0)
    leftover = tmp_path / "artifact" / ".model.safetensors.123.tmp"
    leftover.write_text("half")
    with output(tmp_path, seed=0):
        assert not leftover.exists()


def test_files_of_unknown_origin_are_put_aside_not_mixed_in(tmp_path: Path) -> None:
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "mine").write_text("precious")
    write(tmp_path, "new", finish=True, seed=0)
    assert (tmp_path / "artifact.unknown" / "mine").read_text() == "precious"


def test_equal_settings_give_equal_bytes(tmp_path: Path) -> None:
    records = []
    for place in ("a", "b"):
        write(tmp_path / place, "file", finish=True, seed=0)
        records.append((tmp_path / place / "artifact" / "settings.json").read_bytes())
        assert json.loads((tmp_path / place / "metrics" / "timings" / "demo-stage.json").read_text())
    assert records[0] == records[1]


def test_a_second_writer_waits_for_the_first(tmp_path: Path) -> None:
    script = (
        "import sys, time; sys.path.insert(0, sys.argv[2])\n"
        "from test_output import output; from pathlib import Path\n"
        "with output(Path(sys.argv[1]), seed=0) as held:\n"
        "    print('held', flush=True); time.sleep(1.5); held.finish()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        began = time.monotonic()
        with output(tmp_path, seed=0) as held:
            assert time.monotonic() - began > 0.5
            assert held.complete


def test_an_unfinished_upstream_is_refused_with_the_command_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run that first"):
        upstream_fingerprint(tmp_path / "artifact", "sfd demo-stage")
    write(tmp_path, "half", finish=False, seed=0)
    with pytest.raises(UserError, match="unfinished"):
        upstream_fingerprint(tmp_path / "artifact", "sfd demo-stage")

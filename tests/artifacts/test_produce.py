"""The one driver of artifacts: fingerprinted, resumed, put aside when another recipe made it, never shared."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from artifact_records import RECORDS
from command_line import files_below
from produced import aside, flip, interrupted, must_not_be_called, recipe, run, two_files, writing
from refusals import refusal

from sfd_cli.artifacts import recipe as recipe_module
from sfd_cli.artifacts.fingerprints import finished
from sfd_cli.artifacts.recipe import Facts, Recipe, Record
from sfd_cli.errors import UserError
from sfd_cli.files import read_json


def test_a_finished_artifact_is_found_with_its_facts_and_nothing_is_loaded(tmp_path: Path) -> None:
    assert run(tmp_path, writing("file"), seed=0) == {"count": 3}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "artifact").iterdir()}
    assert run(tmp_path, must_not_be_called, load=must_not_be_called, seed=0) == {"count": 3}
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "artifact").iterdir()} == before


def test_an_unfinished_artifact_of_the_same_recipe_is_resumed(tmp_path: Path) -> None:
    interrupted(tmp_path, "half", seed=0)
    record = Record.read(tmp_path / "artifact")
    assert record is not None
    assert not record.complete
    loads = []

    def make(folder: Path) -> Facts:
        assert (folder / "half").exists()
        return {}

    run(tmp_path, make, load=lambda: loads.append(1), seed=0)
    assert loads == [1]
    (timing,) = json.loads((tmp_path / "metrics/timings/demo-stage.json").read_text())
    assert timing["resumed"]


def test_an_artifact_of_another_recipe_is_put_aside_and_the_change_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, writing("old"), seed=0)
    run(tmp_path, writing("new"), seed=1)
    assert "seed 0 -> 1" in capsys.readouterr().err
    assert [(path / "old").exists() for path in aside(tmp_path)] == [True]
    assert sorted(path.name for path in (tmp_path / "artifact").iterdir()) == [".settings.json", "new", "settings.json"]


def test_an_artifact_that_another_process_makes_between_two_looks_is_no_strangers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, looks = Record.read, []

    def read(folder: Path) -> Record | None:
        found = look(folder)
        if not looks:
            looks.append(folder)
            run(tmp_path, writing("file"), seed=0)
        return found

    monkeypatch.setattr(Record, "read", read)
    assert run(tmp_path, must_not_be_called, load=must_not_be_called, seed=0) == {"count": 3}


def test_a_record_that_is_put_aside_while_it_is_read_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, writing("file"), seed=0)

    def read(path: Path, remedy: str) -> Any:
        if (tmp_path / "artifact").exists():
            (tmp_path / "artifact").rename(tmp_path / "aside")
        return read_json(path, remedy)

    monkeypatch.setattr(recipe_module, "read_json", read)
    assert Record.read(tmp_path / "artifact") is None


def test_an_artifact_of_another_command_is_put_aside(tmp_path: Path) -> None:
    run(tmp_path, writing("old"), seed=0)
    run(tmp_path, writing("new"), command="other-stage", seed=0)
    assert [(path / "old").exists() for path in aside(tmp_path)] == [True]


def test_what_is_free_does_not_make_another_artifact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, writing("old"), free={"batch_size": 4}, seed=0)
    run(tmp_path, must_not_be_called, free={"batch_size": 8}, seed=0)
    run(tmp_path, writing("new"), free={"batch_size": 8}, seed=1)
    assert "batch_size" not in capsys.readouterr().err
    record = Record.read(tmp_path / "artifact")
    assert record is not None
    assert record.settings == {"seed": 1, "batch_size": 8}


def test_what_changed_is_told_for_settings_and_inputs(tmp_path: Path) -> None:
    old = Record.of(Recipe("c", tmp_path, {"a": 1, "gone": 2, "same": 3}, {"images": "x" * 40}, {"free": 5}), {}, None)
    new = Recipe("c", tmp_path, {"a": 2, "same": 3, "added": 4}, {"images": "y"}, {"free": 6})
    changes = new.changes_from(old)
    assert changes == ["a 1 -> 2", "added unset -> 4", "gone 2 -> unset", f"images {'x' * 8}... -> y"]


def test_loading_refuses_before_anything_is_moved(tmp_path: Path) -> None:
    run(tmp_path, writing("old"), seed=0)
    before = sorted(str(path) for path in tmp_path.rglob("*"))

    def refuse() -> None:
        raise UserError("models/vae", "does not fit", "make another")

    with refusal("models/vae"):
        run(tmp_path, must_not_be_called, load=refuse, seed=1)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    assert finished(tmp_path / "artifact", "sfd demo-stage").settings == {"seed": 0}


def test_under_dvc_a_finished_artifact_makes_room_because_the_cache_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_STAGE", "demo-stage")
    run(tmp_path, writing("old"), seed=0)
    run(tmp_path, writing("new"), seed=1)
    assert aside(tmp_path) == []
    assert not (tmp_path / "artifact" / "old").exists()


def test_under_dvc_what_was_not_finished_is_kept_because_no_cache_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_STAGE", "demo-stage")
    interrupted(tmp_path, "old", seed=0)
    run(tmp_path, writing("new"), seed=1)
    assert [(path / "old").exists() for path in aside(tmp_path)] == [True]


def test_under_dvc_what_was_finished_by_hand_is_kept_because_no_cache_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, writing("old"), seed=0)
    monkeypatch.setenv("DVC_STAGE", "demo-stage")
    run(tmp_path, writing("new"), seed=1)
    assert [(path / "old").exists() for path in aside(tmp_path)] == [True]


def test_what_resuming_needs_does_not_belong_to_the_contents(tmp_path: Path) -> None:
    def make(folder: Path) -> Facts:
        checkpoints = recipe(tmp_path, seed=0).checkpoints
        checkpoints.mkdir(parents=True)
        (checkpoints / "last").write_text("state")
        return writing("file")(folder)

    run(tmp_path, make, seed=0)
    assert [path.name for path in (tmp_path / "artifact").iterdir() if path.name not in RECORDS] == ["file"]
    run(tmp_path, must_not_be_called, seed=0)
    run(tmp_path, writing("file"), seed=1)
    assert [path.parts[-3] for path in tmp_path.rglob("last")] == [folder.name for folder in aside(tmp_path)]


def test_what_is_told_of_an_artifact_is_told_while_no_other_process_may_change_it(tmp_path: Path) -> None:
    def tell(facts: Facts) -> dict[str, Any]:
        with open(tmp_path / ".artifact.lock") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return {"told": facts["count"], "file": (tmp_path / "artifact" / "file").read_text()}

    for make in (writing("file"), must_not_be_called):
        assert run(tmp_path, make, seed=0, tell=tell) == {"told": 3, "file": "file"}


def test_what_a_killed_writer_left_under_a_temporary_name_is_removed(tmp_path: Path) -> None:
    interrupted(tmp_path, "half", seed=0)
    leftover, folder = (tmp_path / "artifact" / name for name in (".model.safetensors.123.tmp", ".images.4.tmp"))
    leftover.write_text("half")
    folder.mkdir()
    (folder / "inside").write_text("half")

    def make(_: Path) -> Facts:
        assert not leftover.exists()
        assert not folder.exists()
        return {}

    run(tmp_path, make, seed=0)


@pytest.mark.parametrize(
    "theirs", [None, {}, {"settings": "dark", "version": 3}, [1], {"stage": 5, "fingerprint": None, "facts": []}]
)
def test_a_folder_that_is_somebody_s_own_is_refused_and_left_as_it_is(tmp_path: Path, theirs: Any) -> None:
    folder = recipe(tmp_path).folder
    folder.mkdir()
    (folder / "mine").write_text("precious")
    if theirs is not None:
        (folder / "settings.json").write_text(json.dumps(theirs))
    before = files_below(tmp_path)
    with pytest.raises(UserError) as refused:
        run(tmp_path, must_not_be_called, load=must_not_be_called)
    assert refused.value.subject in (str(folder), str(folder / "settings.json"))
    assert refused.value.remedy
    assert files_below(tmp_path) == before


def test_a_file_where_the_folder_should_be_is_refused(tmp_path: Path) -> None:
    recipe(tmp_path).folder.write_text("precious")
    with refusal(recipe(tmp_path).folder, "is a file"):
        run(tmp_path, must_not_be_called, load=must_not_be_called)
    assert recipe(tmp_path).folder.read_text() == "precious"


def test_a_kill_during_the_very_first_write_leaves_what_the_next_run_takes_for_its_own(tmp_path: Path) -> None:
    folder = recipe(tmp_path).folder
    folder.mkdir()
    (folder / "..settings.json.123.tmp").write_text("{")
    run(tmp_path, writing("new"))
    assert sorted(path.name for path in folder.iterdir()) == [".settings.json", "new", "settings.json"]
    assert aside(tmp_path) == []


def test_equal_recipes_give_equal_bytes(tmp_path: Path) -> None:
    records = []
    for place in ("a", "b"):
        run(tmp_path / place, writing("file"), seed=0)
        records.append((tmp_path / place / "artifact" / "settings.json").read_bytes())
        assert json.loads((tmp_path / place / "metrics" / "timings" / "demo-stage.json").read_text())
    assert records[0] == records[1]


def test_timings_are_those_of_this_very_artifact(tmp_path: Path) -> None:
    timings = tmp_path / "metrics/timings/demo-stage.json"
    interrupted(tmp_path, "half", seed=0)
    run(tmp_path, writing("file"), seed=0)
    run(tmp_path, writing("file"), is_done=lambda facts: False, seed=0)
    assert [segment["resumed"] for segment in json.loads(timings.read_text())] == [True, True]
    run(tmp_path, writing("file"), seed=1)
    assert [segment["resumed"] for segment in json.loads(timings.read_text())] == [False]


def test_a_finished_artifact_that_is_not_all_that_is_asked_for_is_gone_on_with(tmp_path: Path) -> None:
    run(tmp_path, writing("first"), seed=0)
    asked = []

    def make(folder: Path) -> Facts:
        assert (folder / "first").exists()
        return {"count": 4}

    assert run(tmp_path, make, is_done=lambda facts: bool(asked.append(facts)), seed=0) == {"count": 4}
    assert asked == [{"count": 3}]
    assert run(tmp_path, must_not_be_called, seed=0) == {"count": 4}


def test_starting_over_puts_aside_what_the_same_recipe_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def went_too_far() -> str:
        return "was trained for 900 steps"

    run(tmp_path, writing("fresh"), start_over=must_not_be_called, seed=0)
    capsys.readouterr()
    run(tmp_path, writing("new"), start_over=went_too_far, seed=0)
    assert f"{tmp_path / 'artifact'} was trained for 900 steps" in capsys.readouterr().err
    assert [sorted(path.name for path in old.iterdir()) for old in aside(tmp_path)] == [
        [".settings.json", "fresh", "settings.json"]
    ]
    assert sorted(path.name for path in (tmp_path / "artifact").iterdir()) == [".settings.json", "new", "settings.json"]
    (timing,) = json.loads((tmp_path / "metrics/timings/demo-stage.json").read_text())
    assert not timing["resumed"]


def test_a_second_writer_waits_for_the_first(tmp_path: Path) -> None:
    script = (
        "import sys, time; sys.path.insert(0, sys.argv[2])\n"
        "from test_produce import run; from pathlib import Path\n"
        "def make(folder):\n"
        "    print('held', flush=True); time.sleep(1.5); return {'count': 5}\n"
        "run(Path(sys.argv[1]), make, seed=0)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(Path(__file__).parent)]
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    environment = os.environ | {"PYTHONPATH": paths}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        began = time.monotonic()
        assert run(tmp_path, must_not_be_called, seed=0) == {"count": 5}
        assert time.monotonic() - began > 0.5


TOGETHER = """
import sys
from pathlib import Path
from sfd_cli.artifacts.produce import produce
from sfd_cli.artifacts.recipe import Recipe
from sfd_cli.distributed.processes import Processes

root = Path(sys.argv[1])
recipe = Recipe("demo-stage", root / "artifact", {"seed": 0}, {})

def load(processes):
    (root / f"loaded-{processes.rank}").touch()
    return processes.rank

def make(processes, loaded):
    assert loaded == processes.rank
    (recipe.folder / f"part-{processes.rank}").write_text("whole")
    return {"parts": processes.count, "from": processes.rank}

rank = Processes.join().rank
for turn in range(2):
    facts = produce(recipe, load, make)
    (root / f"facts-{turn}-{rank}").write_text(str(facts))
Processes.leave()
"""


def test_processes_make_one_artifact_together_and_all_get_the_facts_of_the_first(tmp_path: Path) -> None:
    (tmp_path / "together.py").write_text(TOGETHER)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        [*torchrun, str(tmp_path / "together.py"), str(tmp_path)], capture_output=True, text=True, env=environment
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("is up to date") == 1
    assert {path.name for path in tmp_path.glob("loaded-*")} == {"loaded-0", "loaded-1"}
    assert {path.read_text() for path in tmp_path.glob("facts-*")} == {str({"parts": 2, "from": 0})}
    record = finished(tmp_path / "artifact", "sfd demo-stage")
    assert record.contents == {"files": 2, "bytes": 10}


def test_an_unfinished_input_is_refused_with_the_command_to_run(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    with refusal(folder, "sfd demo-stage"):
        finished(folder, "sfd demo-stage")
    interrupted(tmp_path, "half", seed=0)
    with refusal(folder, "unfinished", "sfd demo-stage"):
        finished(folder, "sfd demo-stage")
    run(tmp_path, writing("file"), seed=0)
    assert finished(folder, "sfd demo-stage").fingerprint == recipe(tmp_path, seed=0).fingerprint


@pytest.mark.parametrize("is_finished", [True, False])
def test_loading_refuses_before_anything_of_the_same_recipe_changes(tmp_path: Path, is_finished: bool) -> None:
    if is_finished:
        run(tmp_path, two_files, seed=0)
        flip(tmp_path / "artifact" / "first")
    else:
        interrupted(tmp_path, "half", seed=0)
        (tmp_path / "artifact" / ".half.1.tmp").write_text("half")
    before = files_below(tmp_path / "artifact")

    def refuse() -> None:
        raise UserError("models/vae", "does not fit", "make another")

    with refusal("models/vae"):
        run(tmp_path, must_not_be_called, load=refuse, can_mend=lambda names: True, free={"batch_size": 3}, seed=0)
    assert files_below(tmp_path / "artifact") == before

"""What was made by other recipes stays while parts of it may be taken over, and no longer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import files_below
from produced import Killed, aside, interrupted, recipe, run, writing

from sfd_cli.artifacts.earlier import earlier_artifacts
from sfd_cli.artifacts.recipe import Facts

UNDER_DVC = ("DVC_STAGE", "demo-stage")


def hidden(root: Path) -> list[Path]:
    return sorted(root.glob(".*.earlier"))


def seeing(root: Path, *names: str) -> Callable[[Path], Facts]:
    """Work that finds just these files in what was made before."""

    def make(folder: Path) -> Facts:
        found = [path for one in earlier_artifacts(folder, "demo-stage") for path in one.iterdir()]
        assert sorted(path.name for path in found if "settings" not in path.name) == sorted(names)
        return writing("new")(folder)

    return make


def test_under_dvc_it_is_there_until_the_artifact_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(*UNDER_DVC)
    run(tmp_path, writing("old"), seed=0)
    run(tmp_path, seeing(tmp_path, "old"), takes_over=True, seed=1)
    assert hidden(tmp_path) == aside(tmp_path) == []
    assert (tmp_path / "artifact" / "new").exists()
    assert not (tmp_path / "artifact" / "old").exists()


def test_a_killed_run_finds_it_again_and_so_does_one_with_yet_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*UNDER_DVC)
    run(tmp_path, writing("old"), seed=0)
    for seed in (1, 1, 2):
        interrupted(tmp_path, f"half-{seed}", takes_over=True, seed=seed)
        assert [(path / "old").exists() for path in hidden(tmp_path)] == [True]
    # What no cache has is kept for good.
    assert [(path / "half-1").exists() for path in aside(tmp_path)] == [True]
    run(tmp_path, seeing(tmp_path, "old", "half-1"), takes_over=True, seed=2)
    assert hidden(tmp_path) == []
    assert [(path / "half-1").exists() for path in aside(tmp_path)] == [True]


def test_a_run_killed_before_it_could_remove_it_does_so_when_it_finds_itself_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*UNDER_DVC)
    run(tmp_path, writing("old"), seed=0)

    def fail(_: Path) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("sfd_cli.artifacts.produce.remove_earlier", fail)
        with pytest.raises(Killed):
            run(tmp_path, writing("new"), takes_over=True, seed=1)
    assert len(hidden(tmp_path)) == 1
    run(tmp_path, writing("never"), takes_over=True, seed=1)
    assert hidden(tmp_path) == []
    assert not (tmp_path / "artifact" / "never").exists()


def test_without_dvc_it_is_put_aside_for_good(tmp_path: Path) -> None:
    run(tmp_path, writing("old"), seed=0)
    run(tmp_path, seeing(tmp_path, "old"), takes_over=True, seed=1)
    assert hidden(tmp_path) == []
    assert [(path / "old").exists() for path in aside(tmp_path)] == [True]


def test_what_other_stages_made_and_what_has_no_whole_record_is_none(tmp_path: Path) -> None:
    run(tmp_path, writing("old"), command="other-stage", seed=0)
    (tmp_path / "artifact.mine").mkdir()
    (tmp_path / "artifact.damaged").mkdir()
    (tmp_path / "artifact.damaged" / "settings.json").write_text('{"fingerprint": 3}')
    (tmp_path / "artifact.file").write_text("mine")
    run(tmp_path, seeing(tmp_path), takes_over=True, seed=1)


def test_somebody_s_own_folder_under_that_name_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(*UNDER_DVC)
    mine = tmp_path / ".artifact.earlier"
    mine.mkdir()
    (mine / "precious").write_text("mine")
    before = files_below(mine)
    run(tmp_path, writing("old"), seed=0)
    run(tmp_path, seeing(tmp_path), takes_over=True, seed=1)
    assert files_below(mine) == before
    assert recipe(tmp_path, seed=1).matches_disk()


def test_a_removal_that_was_killed_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(*UNDER_DVC)

    def many(folder: Path) -> Facts:
        for name in "abcdef":
            (folder / name).write_text(name)
        return {}

    run(tmp_path, many, seed=0)
    unlink, removed = Path.unlink, []

    def killed(path: Path, missing_ok: bool = False) -> None:
        if path.parent.name == ".artifact.earlier":
            removed.append(path)
            if len(removed) == 3:
                raise Killed
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(Killed):
            run(tmp_path, writing("new"), takes_over=True, seed=1)
    run(tmp_path, writing("never"), takes_over=True, seed=1)
    assert hidden(tmp_path) == []

"""Damage to an artifact and to its record: found, made again where it can be, and never the end of more than itself."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from command_line import files_below
from produced import aside, flip, interrupted, must_not_be_called, run, two_files, writing
from refusals import refusal

from sfd_cli import checksums
from sfd_cli.artifacts.fingerprints import finished
from sfd_cli.artifacts.recipe import Facts
from sfd_cli.artifacts.verification import verify


@pytest.mark.parametrize("harm", [flip, Path.unlink, lambda path: path.write_text("")], ids=["flip", "remove", "empty"])
def test_a_file_that_is_damaged_is_made_again_where_it_can_be_and_alone(
    tmp_path: Path, harm: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, two_files, seed=0)
    first, second = (tmp_path / "artifact" / name for name in ("first", "second"))
    kept = second.stat().st_mtime_ns
    harm(first)
    assert run(tmp_path, two_files, can_mend=lambda names: True, seed=0) == {"count": 3}
    assert (first.read_text(), second.read_text()) == ("first", "second")
    assert second.stat().st_mtime_ns == kept
    assert str(first) in capsys.readouterr().err
    assert aside(tmp_path) == []
    assert verify(tmp_path / "artifact") == ("whole, 2 files, 0.0 MB", False)


@pytest.mark.parametrize("harm", [flip, Path.unlink, lambda path: path.write_text("")], ids=["flip", "remove", "empty"])
def test_damage_that_cannot_be_mended_is_reported_and_left(tmp_path: Path, harm: Callable[[Path], object]) -> None:
    run(tmp_path, two_files, seed=0)
    folder = tmp_path / "artifact"
    harm(folder / "first")
    before = files_below(folder)
    with refusal(folder, folder / "first", "dvc checkout"):
        run(tmp_path, must_not_be_called, load=must_not_be_called, seed=0)
    with refusal(folder, folder / "first", "sfd demo-stage"):
        finished(folder, "sfd demo-stage")
    assert files_below(folder) == before


def test_files_are_read_again_only_where_size_or_time_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, two_files, seed=0)
    read: list[str] = []
    real = checksums.checksums_of

    def counting(folder: Path, names: Iterable[str]) -> dict[str, str]:
        read.extend(names := list(names))
        return real(folder, names)

    monkeypatch.setattr(checksums, "checksums_of", counting)
    folder = tmp_path / "artifact"
    finished(folder, "sfd demo-stage")
    assert read == []
    os.utime(folder / "second")
    finished(folder, "sfd demo-stage")
    finished(folder, "sfd demo-stage")
    assert read == ["second"]
    (tmp_path / ".artifact.seen.json").write_text("{")  # or gone, or of another machine
    finished(folder, "sfd demo-stage")
    finished(folder, "sfd demo-stage")
    assert sorted(read) == ["first", "second", "second"]


def test_damage_that_left_size_and_time_as_they_were_is_found_by_reading_all(tmp_path: Path) -> None:
    run(tmp_path, two_files, seed=0)
    folder = tmp_path / "artifact"
    path, before = folder / "first", (folder / "first").stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    run(tmp_path, must_not_be_called, seed=0)
    told, is_damaged = verify(folder)
    assert is_damaged
    assert str(path) in told
    with refusal(folder, path):
        run(tmp_path, must_not_be_called, seed=0)


def test_a_record_whose_files_lead_out_of_its_folder_touches_nothing_there(tmp_path: Path) -> None:
    run(tmp_path, two_files, seed=0)
    folder = tmp_path / "artifact"
    (tmp_path / "mine").write_text("precious")
    content = json.loads((folder / "settings.json").read_text())
    content["files"] = {"../mine": "3 " + "0" * 32}
    del content["seal"]
    for name in ("settings.json", ".settings.json"):
        (folder / name).write_text(json.dumps(content))
    with refusal(folder / "settings.json", "leads out"):
        run(tmp_path, must_not_be_called, load=must_not_be_called, can_mend=lambda names: True, seed=0)
    assert (tmp_path / "mine").read_text() == "precious"


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_text("")], ids=["remove", "empty"])
def test_an_artifact_of_an_older_version_that_lost_a_file_is_made_again(
    tmp_path: Path, harm: Callable[[Path], object]
) -> None:
    run(tmp_path, two_files, seed=0)
    folder = tmp_path / "artifact"
    content = json.loads((folder / "settings.json").read_text())
    for name in ("settings.json", ".settings.json"):
        (folder / name).write_text(json.dumps({key: content[key] for key in content if key not in ("files", "seal")}))
    run(tmp_path, must_not_be_called, seed=0)
    assert not verify(folder)[1]
    harm(folder / "first")

    def again(path: Path) -> Facts:
        (path / "first").unlink(missing_ok=True)
        return two_files(path)

    run(tmp_path, again, seed=0)
    assert verify(folder) == ("whole, 2 files, 0.0 MB", False)


def drop(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_text(path.read_text()[:200])


def change(path: Path) -> None:
    """Another letter in a fingerprint, as a disk might give it back."""
    content = path.read_text()
    place = content.index('"fingerprint": "') + len('"fingerprint": "')
    path.write_text(f"{content[:place]}{'0' if content[place] != '0' else '1'}{content[place + 1 :]}")


@pytest.mark.parametrize("damage", [drop, cut, change])
@pytest.mark.parametrize("name", ["settings.json", ".settings.json"])
@pytest.mark.parametrize("is_finished", [True, False])
def test_damage_to_one_record_costs_nothing_for_there_is_a_copy(
    tmp_path: Path, damage: Callable[[Path], None], name: str, is_finished: bool
) -> None:
    if is_finished:
        run(tmp_path, writing("file"), seed=0)
    else:
        interrupted(tmp_path, "file", seed=0)
    folder = tmp_path / "artifact"
    whole = (folder / "settings.json").read_bytes()
    damage(folder / name)
    work = must_not_be_called if is_finished else writing("more")
    assert run(tmp_path, work, seed=0) == {"count": 3}
    assert (folder / "file").read_text() == "file"
    assert aside(tmp_path) == []
    if is_finished and name == "settings.json":
        assert (folder / name).read_bytes() == whole


@pytest.mark.parametrize("content", ["[1]", "{", '"text"', "[" * 100_000, '{"fingerprint": "a/../b"}', "\x00"])
def test_a_record_that_is_damaged_twice_is_named_and_nothing_in_its_folder_is_touched(
    tmp_path: Path, content: str
) -> None:
    run(tmp_path, writing("file"), seed=0)
    path = tmp_path / "artifact" / "settings.json"
    for damaged in (path, path.with_name(".settings.json")):
        damaged.write_text(content)
    before = files_below(tmp_path)
    with refusal(path, "dvc checkout") as refused:
        run(tmp_path, must_not_be_called, load=must_not_be_called, seed=0)
    assert "delete" not in refused.value.remedy
    assert files_below(tmp_path) == before


def test_a_record_without_a_copy_or_a_seal_as_older_versions_wrote_it_is_read(tmp_path: Path) -> None:
    run(tmp_path, writing("file"), seed=0)
    path = tmp_path / "artifact" / "settings.json"
    old = {key: value for key, value in json.loads(path.read_text()).items() if key != "seal"}
    path.write_text(json.dumps(old))
    path.with_name(".settings.json").unlink()
    assert run(tmp_path, must_not_be_called, seed=0) == {"count": 3}

"""Rows of TSVs as they are written, and which run they are sent as."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refusal
from tiny_project import tiny_settings

from sfd_cli.files import read_json, write_json
from sfd_cli.trackers.identity import FOLDER, held, run_of
from sfd_cli.trackers.logged import Logged, NewEntries, numbers
from sfd_cli.trackers.tracker import Entry


def logged_in(root: Path, key: str = "dit") -> Logged:
    return Logged(tiny_settings(root), key)


def write(root: Path, name: str, text: str, key: str = "dit") -> Path:
    path = root / "metrics" / key / "plots" / "metrics" / f"{name}.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_entries_are_whole_steps_of_all_tables_and_each_comes_once(tmp_path: Path) -> None:
    write(tmp_path, "loss", "step\tloss\n2\t0.5\n4\t0.25\n")
    write(tmp_path, "validation", "step\tvalidation\n4\t1.5\n")
    entries = NewEntries(logged_in(tmp_path))
    assert entries.look(until=3) == [Entry(2, {"loss": 0.5})]
    assert entries.look(until=3) == []
    assert entries.look() == [Entry(4, {"loss": 0.25, "validation": 1.5})]
    assert (entries.last, entries.names) == (4, {"loss", "validation"})


def test_speed_is_among_the_quantities(tmp_path: Path) -> None:
    write(tmp_path, "loss", "step\tloss\n2\t0.5\n")
    speed = tmp_path / "metrics" / "timings" / "dit" / "plots" / "metrics" / "images_per_second.tsv"
    speed.parent.mkdir(parents=True)
    speed.write_text("step\timages_per_second\n2\t7.5\n")
    assert NewEntries(logged_in(tmp_path)).look() == [Entry(2, {"loss": 0.5, "images_per_second": 7.5})]


def test_a_line_that_is_being_written_waits(tmp_path: Path) -> None:
    path = write(tmp_path, "loss", "step\tloss\n2\t0.5\n4\t0.2")
    entries = NewEntries(logged_in(tmp_path))
    assert entries.look() == [Entry(2, {"loss": 0.5})]
    with open(path, "a") as file:
        file.write("5\n")
    assert entries.look() == [Entry(4, {"loss": 0.25})]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=12), st.integers(0, 2**32))
def test_however_a_table_grows_every_row_comes_once_with_its_very_value(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], seed: int
) -> None:
    root = tmp_path_factory.mktemp("grows")
    content = "step\tloss\n" + "".join(f"{step}\t{value!r}\n" for step, value in enumerate(values, start=1))
    path, entries, draws, found = write(root, "loss", ""), NewEntries(logged_in(root)), random.Random(seed), []
    written = 0
    while written < len(content):
        end = min(written + draws.randint(1, 20), len(content))
        with open(path, "a") as file:
            file.write(content[written:end])
        written = end
        found += entries.look()
    assert [(entry.step, entry.values["loss"]) for entry in found] == list(enumerate(values, start=1))


def test_grids_come_with_their_steps_and_pictures_with_the_last(tmp_path: Path) -> None:
    write(tmp_path, "loss", "step\tloss\n2\t0.5\n4\t0.25\n")
    log = tmp_path / "metrics" / "dit"
    (log / "samples").mkdir()
    for name in ("samples/step-0000002.png", "samples/step-0000003.png", "surface.png"):
        (log / name).touch()
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "samples.png").touch()
    entries = NewEntries(logged_in(tmp_path))
    assert entries.look(until=2) == [Entry(2, {"loss": 0.5}, {"samples": log / "samples/step-0000002.png"})]
    last = {"surface": log / "surface.png", "sampled": tmp_path / "reports" / "samples.png"}
    assert entries.finish() == [
        Entry(3, {}, {"samples": log / "samples/step-0000003.png"}),
        Entry(4, {"loss": 0.25}, last),
    ]


def test_a_table_of_several_columns_is_read_and_what_is_no_number_has_no_value(tmp_path: Path) -> None:
    folder = tmp_path / "metrics" / "curve"
    folder.mkdir(parents=True)
    (folder / "curve.tsv").write_text("step\tfd_mean\tfd_std\n100\t9.5\tnan\n200\t8.5\t\n")
    assert NewEntries(logged_in(tmp_path, "curve")).look() == [
        Entry(100, {"fd_mean": 9.5}),
        Entry(200, {"fd_mean": 8.5}),
    ]


@pytest.mark.parametrize("text", ["step\tloss\n2\n", "loss\n2\n", "step\tloss\n2\tfast\n", "step\tloss\nx\t1\n"])
def test_what_is_no_table_of_steps_is_refused(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, "loss", text)
    with refusal(path):
        NewEntries(logged_in(tmp_path)).look()


def test_scores_are_the_numbers_of_their_file(tmp_path: Path) -> None:
    assert logged_in(tmp_path).scores == {}
    write_json(tmp_path / "metrics" / "fid.json", {"fd": 9.5, "n": 3, "ok": True, "fid": None, "counts": {"n": 4}})
    write_json(tmp_path / "metrics" / "semvae.json", {"mse": 0.5, "latent_mean": [1.0]})
    assert logged_in(tmp_path).scores == {"fd": 9.5, "n": 3.0}
    assert logged_in(tmp_path, "semvae").scores == {"mse": 0.5}
    assert numbers({"b": False}) == {}


def record(root: Path, key: str, fingerprint: str, **settings: object) -> None:
    folder = root / key
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "settings.json", {"fingerprint": fingerprint, "settings": settings, "version": "1", "seal": ""})


def test_a_run_keeps_its_id_as_long_as_the_same_settings_make_it(tmp_path: Path) -> None:
    record(tmp_path, "latents", "l", size=2)
    record(tmp_path, "dit", "first", width=3, knots=[1.0])
    one, again = run_of(logged_in(tmp_path)), run_of(logged_in(tmp_path))
    assert one == again
    assert one.settings == {"latents.size": 2, "sfd": "1", "dit.width": 3, "dit.knots": [1.0]}
    assert read_json(tmp_path / "metrics" / FOLDER / "dit.json") == {"fingerprint": "first", "id": one.id}
    assert (tmp_path / "metrics" / FOLDER / ".gitignore").read_text() == "*\n"
    record(tmp_path, "dit", "second")
    other = run_of(logged_in(tmp_path))
    assert other.id != one.id
    (tmp_path / "metrics" / FOLDER / "dit.json").write_text("{")
    assert run_of(logged_in(tmp_path)).id not in (one.id, other.id)


def test_a_run_is_sent_by_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        held(logged_in(tmp_path)) as first,
        held(logged_in(tmp_path)) as second,
        held(logged_in(tmp_path, "guide")) as other,
    ):
        assert (first, second, other) == (True, False, True)
    with held(logged_in(tmp_path)) as again:
        assert again

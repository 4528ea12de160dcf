"""Rows of the speedrun: their settings, what they share, and a run of real stages that is killed and goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import speedrun
import speedrun_table
import yaml
from pipeline_project import TINY
from refusals import refusal

from sfd_cli.config import Settings, load_settings
from sfd_cli.data.store import Store
from sfd_cli.errors import StageFailure

ROWS = {
    "start": {"prediction": "where it stands", "kept": True, "also": ["colours"]},
    "longer": {"prediction": "more is better", "base": "start", "set": {"dit.steps": 20, "sample": {"steps": 2}}},
    "both": {"prediction": "and more", "base": "longer", "set": {"dit": {"width": 64}}, "kept": False, "remark": "no"},
}
LATE = ["train", "train-guide", "sample", "fid"]


def written(folder: Path, rows: dict[str, Any] | None = None) -> Path:
    path = folder / "rows.yaml"
    path.write_text(yaml.safe_dump({"start": TINY, "rows": ROWS if rows is None else rows}, sort_keys=False))
    return path


def planned(folder: Path, name: str, seed: int = 0) -> dict[str, str]:
    """Folder of every stage of a row."""
    start, rows = speedrun.read_rows(written(folder))
    jobs = speedrun.plan(speedrun.settings_of(name, start, rows, seed), folder / "work")
    return {stage: job.folder.name for stage, job in jobs.items()}


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return [stage for stage in one if one[stage] != other[stage]]


def test_a_row_lays_its_settings_over_those_of_its_base(tmp_path: Path) -> None:
    start, rows = speedrun.read_rows(written(tmp_path))
    settings = speedrun.settings_of("both", start, rows, seed=7)
    assert (settings.dit.steps, settings.dit.width, settings.dit.depth) == (20, 64, 2)
    assert (settings.sample.steps, settings.sample.num_images) == (2, 12)
    assert settings.guide is not None
    assert (settings.dit.seed, settings.guide.seed, settings.sample.seed) == (7, 7, 0)
    assert start["dit"]["steps"] == 12


def test_a_guide_that_is_left_out_stays_so(tmp_path: Path) -> None:
    start, rows = speedrun.read_rows(written(tmp_path))
    rows["alone"] = speedrun.Row(prediction="", set={"guide": None, "sample.guidance": "none"})
    settings = speedrun.settings_of("alone", start, rows, 1)
    assert settings.guide is None
    jobs = speedrun.plan(settings, tmp_path)
    assert jobs["train-guide"].folder.name != planned(tmp_path, "start", 1)["train-guide"]


def test_rows_share_what_their_settings_agree_in(tmp_path: Path) -> None:
    start = planned(tmp_path, "start")
    first = [
        "prepare-data",
        "extract-features",
        "train-semvae",
        "train-texture-vae",
        "encode-latents",
        "learn-schedule",
    ]
    assert list(start) == [*first, *LATE]
    assert differing(start, planned(tmp_path, "start")) == []
    assert differing(start, planned(tmp_path, "start", seed=1)) == LATE
    assert differing(start, planned(tmp_path, "longer")) == ["train", "sample", "fid"]
    rows = {"codec": speedrun.Row(prediction="", set={"texture_vae.steps": 9})}
    codec = speedrun.plan(speedrun.settings_of("codec", TINY, rows, 0), tmp_path)
    changed = ["train-texture-vae", "encode-latents", "learn-schedule", *LATE]
    assert differing(start, {stage: job.folder.name for stage, job in codec.items()}) == changed


def test_a_setting_at_its_default_changes_no_folder(tmp_path: Path) -> None:
    """So that a setting that is new in the package does not either."""
    start, rows = speedrun.read_rows(written(tmp_path))
    rows["same"] = speedrun.Row(prediction="", base="start", set={"texture_vae": {"kl_weight": 1e-6}})
    same = speedrun.plan(speedrun.settings_of("same", start, rows, 0), tmp_path / "work")
    assert differing(planned(tmp_path, "start"), {stage: job.folder.name for stage, job in same.items()}) == []


def test_what_the_demo_starts_from_is_all_there() -> None:
    start, rows = speedrun.read_rows(speedrun.TABLE)
    for name in rows:
        speedrun.settings_of(name, start, rows, 0)
    assert set(start) <= set(load_settings(speedrun.REPOSITORY / "params.yaml").model_dump())


@pytest.mark.parametrize(
    ("rows", "name", "subject"),
    [
        ({"a": {"prediction": "", "sets": {}}}, "a", "rows.yaml: a.sets"),
        ({"a": {}}, "a", "rows.yaml: a.prediction"),
        ({"a": {"prediction": "", "also": ["taste"]}}, "a", "rows.yaml: a.also"),
        ({"a": {"prediction": "", "base": "c"}}, "a", "row"),
        ({"a": {"prediction": "", "base": "b"}, "b": {"prediction": "", "base": "a"}}, "a", "row a"),
        ({"a": {"prediction": "", "set": {"dit.stepps": 1}}}, "a", "dit.stepps"),
    ],
)
def test_what_is_wrong_with_a_row_is_named(tmp_path: Path, rows: dict[str, Any], name: str, subject: str) -> None:
    with refusal(subject):
        start, read = speedrun.read_rows(written(tmp_path, rows))
        speedrun.settings_of(name, start, read, 0)


def test_a_stage_is_run_once_and_goes_on_after_a_failure(tmp_path: Path) -> None:
    """Through two real stages, the second of which finds its input gone the first time."""
    start, rows = speedrun.read_rows(written(tmp_path))
    jobs = speedrun.plan(speedrun.settings_of("start", start, rows, 0), tmp_path / "work")
    with pytest.raises(StageFailure) as failed:
        speedrun.make(jobs["train-texture-vae"])
    assert "prepare-data" in str(failed.value)

    first = speedrun.make(jobs["prepare-data"])
    second = speedrun.make(jobs["train-texture-vae"])
    assert (first["resumed"], second["resumed"]) == (False, True)
    assert second["seconds"] > 0.1
    assert second["cpu"] > 0.1
    folder = jobs["train-texture-vae"].folder
    assert (folder / "models" / "texture_vae" / "model.safetensors").exists()
    log = (folder / "log.txt").read_bytes()
    assert speedrun.make(jobs["train-texture-vae"]) == second
    assert (folder / "log.txt").read_bytes() == log


def images_encoded(settings: Settings) -> float:
    """A further score that looks at a finished artifact."""
    return len(Store(settings.paths.latents))


@pytest.mark.slow
def test_a_whole_row_is_scored_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs, results = tmp_path / "docs", tmp_path / "results"
    docs.mkdir()
    (docs / "speedrun.md").write_text(f"above\n{speedrun_table.BEGIN}\n{speedrun_table.END}\nbelow\n")
    options = ["--file", str(written(tmp_path)), "--out", str(results), "--docs", str(docs)]
    arguments = ["speedrun.py", "start", "--seeds", "0", "1", "--work", str(tmp_path / "work"), "--table", *options]
    monkeypatch.setattr("sys.argv", arguments)
    monkeypatch.setitem(speedrun.ALSO, "colours", images_encoded)
    speedrun.main()
    first = (results / "speedrun.json").read_bytes()
    records = json.loads(first)
    assert [(one["row"], one["seed"]) for one in records] == [("start", 0), ("start", 1)]
    one, other = records
    assert one["fd"] != other["fd"] != other["without guidance"]
    assert one["also"] == {"colours": 48}
    assert one["seconds"] == pytest.approx(sum(stage["seconds"] for stage in one["stages"].values()), abs=0.1)
    assert one["stages"]["encode-latents"] == other["stages"]["encode-latents"]
    assert len(list((tmp_path / "work").glob("train-*"))) == 2 + 2 + 2
    page = (docs / "speedrun.md").read_text()
    assert page.startswith("above\n")
    assert page.endswith("\nbelow\n")
    assert "2 seeds" in page

    speedrun.main()
    assert (results / "speedrun.json").read_bytes() == first
    assert (docs / "speedrun.md").read_text() == page


def made_up(row: str, seed: int, fd: float, seconds: float, resumed: bool = False) -> dict[str, Any]:
    stages = {"train": {"seconds": 2 * seconds, "cpu": seconds, "resumed": resumed}}
    found = {"row": row, "seed": seed, "fd": fd, "without guidance": fd + 10, "psnr": 20.0, "also": {"colours": 0.5}}
    return found | {"seconds": seconds, "stages": stages, "date": "2025-01-01", "commit": "abc", "machine": {}}


def test_the_table_puts_every_row_beside_its_base(tmp_path: Path) -> None:
    _, rows = speedrun.read_rows(written(tmp_path))
    records = [made_up("longer", 1, 110, 30), made_up("longer", 0, 100, 10, True), made_up("start", 0, 120, 50)]
    head, _, start, longer, both = speedrun_table.table(rows, records)
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    cells = dict(zip(columns, (cell.strip() for cell in longer[1:-1].split("|")), strict=True))
    assert cells["FD before"] == "120 (1 seed)"
    assert cells["FD"] == "105 (100 to 110, 2 seeds)"
    assert cells["without guidance"] == "115 (110 to 120, 2 seeds)"
    assert cells["PSNR, dB"] == "20"
    assert (cells["CPU seconds before"], cells["CPU seconds"]) == ("50", "30")
    assert start.endswith("| kept |")
    assert both.endswith("| dropped: no |")


def test_what_is_gathered_again_keeps_its_date_and_what_is_new_takes_its_place(tmp_path: Path) -> None:
    path = tmp_path / "speedrun.json"
    speedrun.record(made_up("start", 0, 120, 50), path)
    speedrun.record(made_up("start", 1, 121, 50), path)
    before = path.read_bytes()
    speedrun.record(made_up("start", 0, 120, 50) | {"date": "2026-01-01", "commit": "def"}, path)
    assert path.read_bytes() == before
    speedrun.record(made_up("start", 0, 119, 50), path)
    assert [one["fd"] for one in json.loads(path.read_text())] == [121, 119]


def test_the_plot_is_drawn_and_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    _, rows = speedrun.read_rows(written(tmp_path))
    records = [made_up("start", 0, 120, 50), made_up("longer", 0, 100, 10), made_up("both", 0, 130, 10)]
    (tmp_path / "speedrun.md").write_text("no marks\n")
    with refusal(tmp_path / "speedrun.md"):
        speedrun_table.write_table(rows, records, tmp_path)
    (tmp_path / "speedrun.md").write_text(f"{speedrun_table.BEGIN}\n{speedrun_table.END}\n")
    speedrun_table.write_table(rows, records, tmp_path)
    assert (tmp_path / "speedrun.png").stat().st_size > 10_000

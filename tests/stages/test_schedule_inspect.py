"""`sfd schedule inspect`: what it writes and prints, whose law it compares, and what the report shows of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import done, empty_folder, refusal_of
from latent_stores import normal, store_of
from PIL import Image
from refusals import require_refusal
from tiny_project import SEMANTIC, TEXTURE, tiny_settings

from sfd_cli.cli.stages import stage_command
from sfd_cli.evaluation.oracle import Oracle
from sfd_cli.files import read_json
from sfd_cli.formats.model_folder import save_model
from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig
from sfd_cli.stages import SCHEDULE_INSPECT, report, schedule_inspect

LABELS = [index % 3 for index in range(90)]
FOLDER = Path("metrics/schedule")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with nothing but latents, whose semantics tell the class; textures are noise, and half as large."""
    folder = empty_folder(tmp_path, monkeypatch)
    told = 3 * torch.eye(SEMANTIC)[torch.tensor(LABELS)][:, :, None, None]
    store_of(Path("data/latents"), normal(90, TEXTURE) / 2, normal(90, SEMANTIC, seed=1) + told, LABELS)
    return folder


@pytest.fixture
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture is one pixel."""

    def draw(path: Path, found: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (1, 1)).save(path)

    monkeypatch.setattr(schedule_inspect, "draw_inspection", draw)


quickly = pytest.mark.usefixtures("_quickly")


def test_it_prints_a_table_and_leaves_numbers_and_a_picture() -> None:
    lines = [line.split() for line in done("schedule", "inspect").out.splitlines()]
    found = read_json(FOLDER / "inspect.json")
    assert lines[0][:5] == ["images", "90", "in", "3", "classes,"]
    half = found["levels"]["0.5"]
    assert ["textures", f"{half['texture']:.3f}", "+-", f"{half['texture_standard_error']:.3f}"] in lines
    assert ["semantics,", "without", "noise", f"{found['accuracy']['whole']['semantic']:.1%}"] in lines
    assert ["warning", "none"] in lines
    assert lines[-1] == ["picture", str(FOLDER / "inspect.png")]
    assert "oracle" not in found
    with Image.open(FOLDER / "inspect.png") as picture:
        assert picture.size == (1650, 930)


@quickly
def test_the_law_is_the_models_where_there_is_one_and_else_that_of_the_settings() -> None:
    Path("params.yaml").write_text("dit: {schedule: lead, lead: 0.7}\n")
    done("schedule", "inspect")
    law, level = (read_json(FOLDER / "inspect.json")[key] for key in ("law", "levels"))
    assert (law["of"], law["settings"]) == ("dit in the settings", {"schedule": "lead", "lead": 0.7})
    assert law["ahead"] == pytest.approx(0.7 - level["0.5"]["lead"], abs=1e-5)
    config = LightningDiTConfig(2, TEXTURE + SEMANTIC, 3, SEMANTIC, width=32, depth=1, heads=2)
    weights = LightningDiT(config).state_dict()
    save_model(Path("models/dit"), "LightningDiT", config, {"model": weights, "ema": weights}, {"delta_t": 0.3})
    done("schedule", "inspect")
    law = read_json(FOLDER / "inspect.json")["law"]
    assert (law["of"], law["settings"]) == ("models/dit", {"schedule": "offset", "delta_t": 0.3})


@quickly
def test_a_damaged_model_does_not_keep_the_latents_from_being_inspected() -> None:
    Path("models/dit").mkdir(parents=True)
    Path("models/dit/config.json").write_text("{")
    done("schedule", "inspect")
    assert read_json(FOLDER / "inspect.json")["law"]["of"] == "dit in the settings"


@quickly
def test_the_page_shows_it_with_its_warnings_and_nothing_where_it_was_not_run() -> None:
    settings = tiny_settings(Path())
    report.run(settings)
    page = Path("reports/index.html")
    assert "Order of the streams" not in page.read_text()
    store_of(Path("latents"), normal(90, TEXTURE), normal(90, SEMANTIC, seed=1), LABELS)
    found = schedule_inspect.run(settings)
    report.run(settings)
    text = page.read_text()
    assert text.count('id="schedule"') == text.count('href="#schedule"') == 1
    assert found["lead at which both draw level"] in text
    assert text.count("Warning: semantics are no more informative than textures") == 2


@quickly
def test_the_oracle_is_told_beside_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    class Opened:
        def measure(self) -> dict[str, float]:
            return {
                "images": 90,
                "real_semantics": 71.5,
                "sampled_semantics": 71.0,
                "gain": -0.5,
                "gain_standard_error": 1.25,
            }

    monkeypatch.setattr(Oracle, "open", lambda settings: Opened())
    out = done("schedule", "inspect", "--oracle").out
    assert "-0.5 +- 1.2" in out
    found = read_json(FOLDER / "inspect.json")
    assert found["oracle"]["real_semantics"] == 71.5
    assert ["real semantics" in warning for warning in found["warnings"]] == [True]


def test_one_class_and_a_law_without_a_lead_are_drawn_and_told_too() -> None:
    store_of(Path("plain"), normal(40, TEXTURE), normal(40, SEMANTIC))
    Path("params.yaml").write_text("dit: {delta_t: 1.0}\n")
    out = done("schedule", "inspect", "--latents", "plain").out
    assert "none: there is one class" in out
    assert "never are at half together" in out


def test_what_is_missing_is_refused_before_anything_is_written() -> None:
    require_refusal(refusal_of("schedule", "inspect", "--latents", "nowhere"), "nowhere", "index.h5")
    require_refusal(refusal_of("schedule", "inspect", "--oracle"), "models/dit")
    store_of(Path("plain"), normal(40, TEXTURE), None)
    require_refusal(refusal_of("schedule", "inspect", "--latents", "plain"), "plain", "no semantics")


def test_no_two_flags_share_a_name() -> None:
    flags = [flag for option in stage_command("inspect", SCHEDULE_INSPECT).params for flag in option.opts]
    assert "--oracle" in flags
    assert len(flags) == len(set(flags))

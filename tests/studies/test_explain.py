"""`sfd study explain`: what it measures beside a study's rows, and what it says of it."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from refusals import refusal
from study_project import calls, quick, quick_project, real_project, write_pipeline, write_study

from sfd_cli.artifacts.learned_law import read_surface
from sfd_cli.diffusion.laws import CurveSchedule, LeadSchedule
from sfd_cli.diffusion.path_criterion import path_weights, schedule_weights
from sfd_cli.studies import explain
from sfd_cli.studies.analysis import Row
from sfd_cli.studies.explain import explain_study
from sfd_cli.studies.reasons import told
from sfd_cli.studies.run import RUNS, run_study

REASONS, PAGE = Path("studies/offset/reasons.json"), Path("studies/offset/README.md")
ROWS: dict[str, Any] = {
    "none": {"dit": {"schedule": "lead", "lead": 0.0}},
    "lead": {"dit": {"schedule": "lead", "lead": 0.75}},
    "lead and larger": {"dit": {"schedule": "lead", "lead": 0.75, "batch_size": 9}},
    "learned": {"dit.schedule": "learned", "schedule": {"learn": True, "probe": {"lead": 0.5}}},
    "sampled": {"dit": {"schedule": "lead", "lead": 0.0}, "sample": {"schedule": "lead", "lead": -1.25}},
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose stages take no time, with one that learns a schedule."""
    monkeypatch.chdir(tmp_path)
    quick_project(tmp_path, vary=ROWS, seeds=[3, 4])
    stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    learner = quick(tmp_path, "learn-schedule") | {"params": ["schedule"], "outs": ["models/schedule"]}
    stages["train"]["deps"] = ["data/images", "models/schedule"]
    write_pipeline(tmp_path, {"learn-schedule": learner} | stages)
    monkeypatch.setattr(explain, "INSPECT", (sys.executable, "quick.py", "oracle", "sfd_cli"))
    return tmp_path


def reasons() -> dict[str, Any]:
    return json.loads(REASONS.read_text())


def test_a_row_has_the_oracle_of_its_models_and_the_criterion_of_its_law(here: Path) -> None:
    assert explain_study("offset")["rows"] == 5
    found = {row["row"]: row for row in reasons()["rows"]}
    assert [row["seed"] for row in found.values()] == [3] * 5
    (learned,) = [path for path in RUNS.glob("learn-schedule-*/models/schedule") if (path / "surface.npz").exists()]
    surface, control, seen = (read_surface(learned, of) for of in ("", "control", "trained_on"))

    def cost(errors: Any, law: LeadSchedule) -> torch.Tensor:
        if law.slope:
            weights = schedule_weights(errors.levels, law, 0.5)
        else:  # by another quadrature than that of `gap_along`
            weights = path_weights(errors.levels, law.lead, semantic_end=0.5)
        return sum((w * e.double()).sum(dim=(1, 2)) for w, e in zip(weights, errors.errors, strict=True))

    straight = LeadSchedule(0.0)
    laws = {"lead": LeadSchedule(0.75), "learned": CurveSchedule(0.5, -1.5), "sampled": LeadSchedule(-1.25)}
    for row, law in laws.items():
        gaps = cost(surface, law) - cost(surface, straight)
        more = gaps - (cost(control, law) - cost(control, straight))
        assert found[row]["gap"] == pytest.approx(gaps.mean().item(), rel=1e-2)
        assert found[row]["standard_error"] == pytest.approx(gaps.std().item() / math.sqrt(len(gaps)), rel=1e-2)
        assert found[row]["related_gap"] == pytest.approx(more.mean().item(), rel=1e-2)
        gaps = cost(seen, law) - cost(seen, straight)
        assert found[row]["trained_on_gap"] == pytest.approx(gaps.mean().item(), rel=1e-2)
        assert found[row]["trained_on_error"] == pytest.approx(gaps.std().item() / math.sqrt(len(gaps)), rel=1e-2)
    assert found["none"]["gap"] == pytest.approx(0, abs=1e-6)
    assert found["lead"]["real_semantics"] == 70.75, "of its own models, as many images as are scored"
    assert [row["only_law"] for row in found.values()] == [True, True, False, True, True]
    assert found["sampled"]["draws"] == 1, "it is trained in step"
    probe = reasons()["probe"]
    assert (probe["lead"], probe["is_clear"], probe["gap"], probe["validation_texture"]) == (0.5, False, -1, 0.5)
    assert "loss" not in probe
    assert probe["synchronous_trained_on"] == pytest.approx(cost(seen, straight).mean().item(), rel=1e-2)
    assert reasons()["latents"]["level"]["lead"] == -0.25


def test_what_is_there_is_not_made_again_and_rows_images_and_seed_can_be_chosen(here: Path) -> None:
    run_study("offset", rows=["none"], seeds=[4])
    calls()
    explain_study("offset", ["none"], seed=4, images=200)
    assert [call.split()[0] for call in calls()] == ["learn-schedule", "oracle"], (
        "with the settings of the row that learns"
    )
    assert [(row["row"], row["seed"], row["images"]) for row in reasons()["rows"]] == [("none", 4, 200)]
    before = REASONS.read_bytes()
    explain_study("offset", ["none"], seed=4, images=200)
    assert calls() == []
    assert REASONS.read_bytes() == before


def test_the_oracle_reads_what_any_stage_of_the_run_made_and_writes_beside_it(here: Path) -> None:
    explain_study("offset", ["lead"])
    (oracle,) = RUNS.glob("oracle-*")
    paths = yaml.safe_load((oracle / "params.yaml").read_text())["paths"]
    for key, stage in {"schedule": "learn-schedule", "dit": "train"}.items():
        assert Path(paths[key]).exists()
        assert Path(paths[key]).relative_to(RUNS).parts[0].startswith(f"{stage}-"), key
    assert Path(paths["metrics"]).is_relative_to(oracle)


def test_without_a_row_that_learns_the_probe_is_that_of_the_baseline(here: Path) -> None:
    write_study(here, vary={"none": {"dit.delta_t": 0.0}, "some": {"schedule.probe.lead": 0.25}}, seeds=[0])
    explain_study("offset", ["none"])
    assert reasons()["probe"]["lead"] == 0


def test_a_study_gives_the_probe_settings_that_no_run_has(here: Path) -> None:
    rows = {"none": {"dit.delta_t": 0.0}}
    write_study(here, vary=rows, seeds=[0], explain={"schedule.probe": {"lead": 0.25}})
    run_study("offset")
    explain_study("offset")
    assert reasons()["probe"]["lead"] == 0.25
    calls()
    run_study("offset")
    assert calls() == [], "what is there of the runs is still theirs"
    write_study(here, vary=rows, seeds=[0], explain={"schedule.probe": {"leads": 0.25}})
    with refusal("schedule.probe.leads", "lead"):
        explain_study("offset")


def test_the_page_has_it_beside_the_scores(here: Path) -> None:
    run_study("offset", seeds=[3])
    assert "real semantics" not in PAGE.read_text()
    explain_study("offset")
    assert "| `lead` | +0 | 100% | " in PAGE.read_text()
    assert "draw level at a lead of -0.25 ± 0.5" in PAGE.read_text()
    run_study("offset", seeds=[4])
    assert "real semantics" in PAGE.read_text(), "it stays when the study goes on"


def test_what_cannot_be_explained_is_refused_before_anything_runs(here: Path) -> None:
    with refusal("--seed", "5", "3, 4"):
        explain_study("offset", seed=5)
    with refusal("--rows", "nine", "none"):
        explain_study("offset", ["nine"])
    REASONS.write_text("[]")
    with refusal(REASONS, "study explain"):
        run_study("offset", seeds=[3])
    REASONS.unlink()
    stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    stages["train"]["deps"] = ["data/images"]
    write_pipeline(here, stages)
    with refusal("dvc.yaml", "learn-schedule", "sfd init"):
        explain_study("offset")
    assert calls() == []


def row_of(name: str, difference: float) -> Row:
    return Row(name, {0: 100 + difference}, None, {0: difference}, name == "law 0", True)


def explained(count: int, gaps: list[float]) -> dict[str, Any]:
    rows = [
        {
            "row": f"law {n}",
            "seed": 0,
            "only_law": True,
            "draws": 0.75,
            "gap": gap,
            "standard_error": 0.5,
            "images": 900,
        }
        | {"related_gap": gap / 2, "related_error": 0.25, "trained_on_gap": gap - 1, "trained_on_error": 0.125}
        | {"real_semantics": 70.0 - n, "sampled_semantics": 72.0}
        | {"gain": 2.0, "gain_standard_error": 0.75}
        for n, gap in zip(range(count), gaps, strict=True)
    ]
    probe = {"lead": 1.5, "is_clear": True, "gap": -3.0, "standard_error": 0.5, "synchronous": 250.0}
    probe |= {"related_gap": -1.0, "related_error": 0.25, "synchronous_trained_on": 200.0, "interpolation": 0.75}
    probe |= {f"{k}_{s}": v for k, v in (("validation", 0.75), ("training", 0.5)) for s in ("texture", "semantic")}
    accuracy = {key: {"semantic": 0.625, "texture": 0.5} for key in ("whole", "half_resolved")}
    level = {"lead": -0.25, "lead_standard_error": 0.125}
    return {"latents": {"images": 99, "level": level, "accuracy": accuracy}, "probe": probe, "rows": rows}


def test_the_words_say_what_the_numbers_say() -> None:
    gaps = [0.0, -3.0, -2.0, 1.0, 4.0, 2.0]
    rows = [row_of(f"law {n}", gap**3) for n, gap in enumerate(gaps)]
    text = "\n".join(told(explained(6, gaps), rows))
    assert "| `law 1` | -27 | 75% | -3 ± 0.5 | -1.5 ± 0.25 | -4 ± 0.12 | 69 | 72 | +2 ± 0.75 |" in text
    assert "| `law 0` |  | 75% | +0 ± 0.5 |" in text, "the baseline is not compared with itself"
    assert "62.5% of the images from semantics and of 50.0% from textures" in text
    assert "a clear preference (lead 1.5: -3 ± 0.5 nats an image" in text
    assert "0.75 more or less by what lies between the levels" in text
    assert "of 250 along that path, and of 200 on images" in text
    assert "texture 0.75 held out, 0.5 trained on" in text
    assert "over 6 laws: with the score +1.00, with the distance by real semantics -0.77" in text
    five = explained(5, gaps[:5])
    assert "correlation" not in "\n".join(told(five, rows)), "too few"
    assert "correlation" not in "\n".join(told(explained(6, gaps), rows[:5])), "a law without a score does not count"
    five["probe"]["is_clear"] = False
    assert "no preference" in "\n".join(told(five, rows))


@pytest.mark.slow
def test_real_stages_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    probe = {"width": 16, "depth": 2, "heads": 2, "batch_size": 8, "steps": 20, "holdout": 0.3, "precision": "fp32"}
    rows = {"none": {}, "lead": {"dit": {"schedule": "lead", "lead": 1.0}}}
    common = {
        "dit.steps": 20,
        "dit.objective": "corrected",
        "sample.num_images": 24,
        "schedule": {"probe": probe, "levels": 3},
    }
    real_project(Path(), vary=rows, set=common, seeds=[0], images=48)
    stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    learner = {"cmd": "sfd learn-schedule", "deps": ["latents"], "params": ["schedule"], "outs": ["models/schedule"]}
    stages["train"]["deps"].append("models/schedule")
    write_pipeline(Path(), {"learn-schedule": learner} | stages)
    explain_study("offset")
    none, lead = reasons()["rows"]
    assert none["gap"] == pytest.approx(0, abs=1e-6)
    assert lead["gap"] != 0
    assert min(lead["real_semantics"], lead["sampled_semantics"]) > 0  # alike, of networks as small as these
    assert 0.5 < lead["draws"] < none["draws"] == 1
    assert reasons()["probe"]["validation_texture"] > 0
    assert "draw level" in PAGE.read_text()

"""The file of a study: rows, grids and bases, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from refusals import refusal
from study_project import STUDY, write_study

from sfd_cli.config import Settings
from sfd_cli.studies.layers import dotted, lookup, nested
from sfd_cli.studies.study import Study, list_studies, open_study, read_base, read_study, settings_of

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def study(**keys: Any) -> Study:
    return Study.model_validate(STUDY | keys)


def settings(one: Study, row: str, seed: int = 0, base: dict[str, Any] | None = None) -> Settings:
    return settings_of(one, row, seed, base or {}, "study.yaml")


def test_a_row_lies_over_the_settings_of_all_and_these_over_the_base() -> None:
    base = {
        "dit": {"steps": 5, "width": 64, "heads": 2},
        "sample": {"steps": 9},
        "fid": {"encoder": {"image_size": 84}},
    }
    found = settings(study(set={"dit.steps": 20, "fid.encoder.weights": "random"}), "much", 7, base)
    assert (found.dit.steps, found.dit.width, found.dit.delta_t, found.sample.steps) == (20, 64, 1.0, 9)
    assert (found.fid.encoder.image_size, found.fid.encoder.weights) == (84, "random")
    assert base["dit"] == {"steps": 5, "width": 64, "heads": 2}


def test_a_seed_is_that_of_transformer_and_guide_and_samples_keep_theirs() -> None:
    found = settings(study(), "some", 7, {"sample": {"seed": 5}})
    assert found.guide is not None
    assert (found.dit.seed, found.guide.seed, found.sample.seed) == (7, 7, 5)
    assert settings(study(set={"guide": None}), "some", 7).guide is None


def test_the_numbers_of_another_law_go_with_it() -> None:
    base = {"dit": {"delta_t": 0.2}, "sample": {"delta_t": 0.2}}
    rows = {"lead": {"dit.schedule": "lead", "dit.lead": 0.7, "sample": {"schedule": "lead", "lead": 0.5}}}
    found = settings(study(vary=rows), "lead", 0, base)
    assert (found.dit.schedule, found.dit.lead) == ("lead", 0.7)
    assert (found.sample.schedule, found.sample.lead, found.sample.delta_t) == ("lead", 0.5, None)
    follows = settings(study(vary={"free": {"sample.delta_t": None}}), "free", 0, base)
    assert (follows.sample.delta_t, follows.dit.delta_t) == (None, 0.2)


def test_a_grid_makes_a_row_of_every_combination() -> None:
    grid = {"dit.objective": ["paper", "corrected"], "sample.steps": [4, 8]}
    found = study(vary={"near": {"dit.delta_t": 0.1}, "far": None}, grid=grid)
    assert list(found.rows) == [
        f"{row} dit.objective={objective} sample.steps={steps}"
        for row in ("near", "far")
        for objective in ("paper", "corrected")
        for steps in (4, 8)
    ]
    row = found.rows["near dit.objective=corrected sample.steps=4"]
    assert row == {"dit": {"delta_t": 0.1, "objective": "corrected"}, "sample": {"steps": 4}}
    assert found.varied == ["dit.delta_t", "dit.objective", "sample.steps"]
    assert list(study(vary={}, grid={"dit.delta_t": [0.0, 0.1]}).rows) == ["dit.delta_t=0.0", "dit.delta_t=0.1"]


def test_the_baseline_is_the_first_row_or_the_one_that_is_named() -> None:
    assert study().compared_with == "none"
    assert study(baseline="much").compared_with == "much"
    assert set(study(baseline="much").partners.values()) == {"much"}


def test_in_a_grid_the_baseline_may_be_the_row_with_the_same_values() -> None:
    grid = {"sample.steps": [4, 8]}
    rows = {"near": {"dit.delta_t": 0.1}, "far": {"dit.delta_t": 0.5}}
    near, far = ([f"{name} sample.steps={steps}" for steps in (4, 8)] for name in rows)
    assert study(vary=rows, grid=grid, baseline="far").partners == dict(zip(near + far, far + far, strict=True))
    for whole in (None, near[0]):
        assert set(study(vary=rows, grid=grid, baseline=whole).partners.values()) == {near[0]}


def test_dots_and_nesting_are_two_spellings() -> None:
    deep = {"dit": {"steps": 3, "knots": [0.1]}, "guide": None, "fid": {"encoder": {"tiles": 2}}}
    flat = {"dit.steps": 3, "dit.knots": [0.1], "guide": None, "fid.encoder.tiles": 2}
    assert dotted(deep) == flat
    assert nested(flat) == nested(deep) == deep
    assert lookup(deep, "fid.encoder.tiles") == 2
    assert lookup(deep, "fid.steps", "none") == "none"
    assert lookup(deep, "guide.steps") is None


def test_the_base_is_a_preset_a_file_or_the_settings_here() -> None:
    assert read_base(study(), None) == {}
    Path("params.yaml").write_text("dit: {steps: 1}")
    Path("other.yaml").write_text("dit: {steps: 2}")
    assert read_base(study(), None) == {"dit": {"steps": 1}}
    assert read_base(study(base="other.yaml"), None) == {"dit": {"steps": 2}}
    assert read_base(study(base="demo"), None)["images"]["source"] == "openmoji"
    assert read_base(study(base="demo"), Path("params.yaml")) == {"dit": {"steps": 1}}
    with refusal("base", "demo"):
        read_base(study(base="dema"), None)
    with refusal("base", "gone.yaml"):
        read_base(study(base="gone.yaml"), None)
    with refusal("--params", "gone.yaml"):
        read_base(study(), Path("gone.yaml"))


def test_studies_are_found_by_name_in_folders_and_alone(here: Path) -> None:
    path = write_study(here)
    (here / "studies" / "alone.yaml").write_text(yaml.safe_dump(STUDY))
    assert list_studies() == {"alone": Path("studies/alone.yaml"), "offset": path.relative_to(here)}
    assert open_study("alone")[0] == study()
    with refusal("ofset", "offset"):
        open_study("ofset")


@pytest.mark.parametrize(
    ("keys", "subject", "named"),
    [
        ({"varry": {}}, "varry", "vary"),
        ({"vary": {}}, "vary", "grid"),
        ({"vary": {"a,b": {}}}, "vary", "a,b"),
        ({"vary": {"a": 3}}, "vary.a", "3"),
        ({"baseline": "nune"}, "baseline", "none"),
        ({"seeds": []}, "seeds", "[]"),
        ({"seeds": [1, 1]}, "seeds", "[1, 1]"),
        ({"seeds": [-1]}, "seeds.0", "-1"),
        ({"vary": {"a": {"dit.seed": 3}}}, "vary.a", "dit.seed"),
        ({"grid": {"sample.seed": [0, 1]}}, "vary.none sample.seed=0", "sample.seed"),
        ({"set": {"guide": {"seed": 3}}}, "set", "guide.seed"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(here: Path, keys: dict[str, Any], subject: str, named: str) -> None:
    path = write_study(here, **keys)
    with refusal(f"{path}: {subject}", named):
        read_study(path)


@pytest.mark.parametrize(("text", "named"), [("a: [", "YAML"), ("- a", "list"), ("\xff", "str")])
def test_a_file_that_is_no_mapping_is_refused(here: Path, text: str, named: str) -> None:
    path = write_study(here)
    path.write_text(text)
    with refusal(path, named):
        read_study(path)


def test_a_setting_that_does_not_hold_is_named_with_its_row() -> None:
    rows = {"none": {}, "wrong": {"dit.stepps": 3}}
    with refusal("dit.stepps", "wrong", "study.yaml", "steps"):
        settings(study(vary=rows), "wrong")


def test_the_studies_of_this_repository_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    studies = list_studies()
    assert "leads" in studies
    for path in studies.values():
        one = read_study(path)
        base = read_base(one, None)
        laws = {row: settings_of(one, row, seed, base, path) for row in one.rows for seed in one.seeds}
        assert len({str(found) for found in laws.values()}) == len(one.rows)

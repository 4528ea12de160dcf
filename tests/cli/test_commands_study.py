"""`sfd study` as people type it."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import done, refusal_of, sfd
from refusals import require_refusal
from study_project import quick_project, write_study


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_studies_are_listed_run_and_shown(here: Path) -> None:
    assert "no studies" in done("study", "list").out
    quick_project(here)
    assert done("study", "list").out.split() == ["offset", "0", "of", "6", "An", "offset"]
    assert "not run" in done("study", "show", "offset").out
    said = done("study", "run", "offset", "--rows", "none, much", "--seeds", "1").out
    assert "2 of 6" in said
    assert "studies/offset/results.json" in said
    shown = done("study", "show", "offset").out
    assert "Does an offset help?" in shown
    assert "| `much` | 1 | 115 |" in shown
    assert shown.split("\n\n")[1] in Path("studies/offset/README.md").read_text()
    assert done("study", "list").out.split()[1] == "2"


def test_a_failed_run_is_the_exit_code(here: Path) -> None:
    quick_project(here, vary={"bad": {"dit.steps": 13}}, seeds=[0])
    ran = sfd("study", "run", "offset")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.count("sfd: error: study offset") == 1
    assert "Traceback" not in ran.err


def test_mistakes_are_told_in_a_sentence(here: Path) -> None:
    require_refusal(refusal_of("study", "show", "ofset"), "ofset", "studies/ofset/study.yaml")
    path = write_study(here)
    require_refusal(refusal_of("study", "run", "ofset"), "ofset", "offset")
    require_refusal(refusal_of("study", "run", "offset"), "dvc.yaml")
    quick_project(here)
    require_refusal(refusal_of("study", "run", "offset", "--rows", "soma"), "--rows", "some")
    require_refusal(refusal_of("study", "run", "offset", "--params", "gone.yaml"), "--params", "gone.yaml")
    path.write_text("a: [")
    for command in (("list",), ("show", "offset"), ("run", "offset")):
        require_refusal(refusal_of("study", *command), path.relative_to(here), "YAML")
    for flags in (("--jobs", "0"), ("--seeds", "a")):
        assert sfd("study", "run", "offset", *flags).code == 2

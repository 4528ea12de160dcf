"""The page of evidence has the numbers that were recorded."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def evidence() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evidence", DOCS / "evidence.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_recorded_results_make_of_it(evidence: ModuleType) -> None:
    page = (DOCS / "evidence.md").read_text()
    assert evidence.MARKED.search(page)
    assert evidence.filled(page) == page, "run `python docs/evidence.py` and commit the page"


def test_differences_are_between_runs_of_one_seed(evidence: ModuleType) -> None:
    runs = {"synchronous": {0: {"x": 1.0}, 1: {"x": 5.0}}, "lead 2": {0: {"x": 3.0}, 1: {"x": 6.0}, 2: {"x": 99.0}}}
    mean, error = evidence.difference(runs, "lead 2", "x")
    assert mean == 1.5
    assert error == pytest.approx(0.5)  # of 2 and 1: standard deviation 0.707 over the root of 2
    assert math.isnan(evidence.difference({"synchronous": {0: {"x": 1.0}}, "a": {0: {"x": 2.0}}}, "a", "x")[1])


def test_it_is_drawn(evidence: ModuleType, tmp_path: Path) -> None:
    evidence.draw(tmp_path / "order.png")
    assert (tmp_path / "order.png").stat().st_size > 10_000

"""What is seen in a study's results, against numbers worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from refusals import refusal

from sfd_cli.studies.analysis import Row, analyse, paragraph, table
from sfd_cli.studies.page import PAGE, PLOT, write_page
from sfd_cli.studies.study import Study

ROWS = ("zero", "small", "large", "odd", "late")


def study(**keys: Any) -> Study:
    values = {
        "title": "Offsets",
        "question": "Do offsets help?",
        "vary": {name: {} for name in ROWS},
        "dataset": "dots",
    }
    return Study.model_validate(values | keys)


def results(key: str = "fd_dinov2", **rows: dict[int, float]) -> list[dict[str, Any]]:
    return [
        {"row": row, "seed": seed, key: score, f"{key}_se": 3.0 + seed}
        for row, scores in rows.items()
        for seed, score in scores.items()
    ]


# Seeds differ by tens, the pairs by little.
FOUND = results(
    zero={0: 100.0, 1: 120.0, 2: 140.0},
    small={0: 97.0, 1: 118.0, 2: 136.0, 3: 155.0},
    large={0: 101.0, 1: 119.0, 2: 141.0},
    odd={2: 143.0},
)


def rows_of(found: list[dict[str, Any]], **keys: Any) -> dict[str, Row]:
    return {row.name: row for row in analyse(study(**keys), found)}


def test_rows_are_compared_seed_by_seed() -> None:
    small = rows_of(FOUND)["small"]
    assert small.mean == pytest.approx((97 + 118 + 136 + 155) / 4)
    assert small.differences == {0: -3.0, 1: -2.0, 2: -4.0}, "seed 3 has no partner"
    assert small.difference == pytest.approx(-3)
    assert small.error == pytest.approx(1 / math.sqrt(3)), "their standard deviation is 1"
    assert small.seen == "better"


def test_a_difference_within_two_standard_errors_is_none() -> None:
    large = rows_of(FOUND)["large"]
    assert large.difference == pytest.approx(1 / 3)
    assert large.error == pytest.approx(math.sqrt(4 / 3) / math.sqrt(3))
    assert large.seen == "no difference seen"


@pytest.mark.parametrize(("last", "seen"), [(3.0, "worse"), (9.9, "worse"), (10.1, "no difference seen")])
def test_the_bound_is_two_standard_errors(last: float, seen: str) -> None:
    """Differences 2, 2, 2 and d have the mean (6 + d) / 4 and the error (d - 2) / 4: twice that is as much at 10."""
    base = dict.fromkeys(range(4), 50.0)
    row = rows_of(results(zero=base, small={0: 52.0, 1: 52.0, 2: 52.0, 3: 50 + last}))["small"]
    assert row.error == pytest.approx((last - 2) / 4)
    assert row.seen == seen


def test_one_seed_none_in_common_and_none_at_all_are_told_apart() -> None:
    rows = rows_of(FOUND)
    assert (rows["odd"].difference, rows["odd"].error, rows["odd"].seen) == (3.0, None, "one seed")
    assert (rows["late"].mean, rows["late"].difference, rows["late"].seen) == (None, None, "not run")
    assert rows["zero"].seen == "baseline"
    alone = rows_of(results(zero={0: 1.0}, small={1: 2.0}))["small"]
    assert (alone.difference, alone.seen) == (None, "no seed in common")
    assert {row.seen for row in rows_of(results(small={0: 1.0})).values()} == {"not run", "no seed in common"}


def test_runs_of_different_kinds_of_machine_are_no_pair() -> None:
    """A processor that multiplies in bf16 trains another network: seed 0 is compared, seed 1 is not, old rows are."""
    older, newer = ({"processor": "Abacus", "instructions": one} for one in ("AVX2", "AVX512, bf16"))
    found = [
        one | {"machine": {"processor": "Abacus"} if one["seed"] == 2 else newer if one["seed"] else older}
        for one in results(zero={0: 100.0, 1: 120.0, 2: 140.0}, small={0: 97.0, 1: 110.0, 2: 136.0})
    ]
    found[1]["machine"] = older | {"threads": 3}
    assert rows_of(found)["small"].differences == {0: -3.0, 2: -4.0}
    assert rows_of(found)["small"].mean == pytest.approx((97 + 110 + 136) / 3)


def test_of_some_scores_more_is_better_and_the_baseline_may_be_any_row() -> None:
    found = results("precision_dinov2", zero={0: 0.5, 1: 0.6}, small={0: 0.4, 1: 0.5})
    assert rows_of(found, score="precision_dinov2")["small"].seen == "worse"
    assert rows_of(found, score="precision_dinov2", baseline="small")["zero"].seen == "better"


def test_in_a_grid_rows_are_compared_with_those_of_the_same_values() -> None:
    names = ("zero", "small")
    found = results(**{"zero a=1": {0: 10.0}, "zero a=2": {0: 20.0}, "small a=1": {0: 9.0}, "small a=2": {0: 25.0}})
    rows = rows_of(found, vary={name: {} for name in names}, grid={"a": [1, 2]}, baseline="zero")
    assert [row.seen for row in rows.values()] == ["baseline", "baseline", "one seed", "one seed"]
    assert [rows[f"small a={a}"].difference for a in (1, 2)] == [-1, 5]


def test_results_of_other_rows_seeds_and_scores_have_no_part() -> None:
    further = results(gone={0: 1.0}, small={7: 1.0}) + results("kid_dinov2", large={3: 1.0})
    assert rows_of(FOUND + further, seeds=[0, 1, 2, 3]) == rows_of(FOUND)
    assert rows_of(FOUND, seeds=[0, 1])["small"].scores == {0: 97.0, 1: 118.0}


def test_the_error_of_sampling_is_the_root_mean_square_of_the_runs() -> None:
    rows = rows_of(FOUND)
    assert rows["zero"].sampling_error == pytest.approx(math.sqrt((9 + 16 + 25) / 3))
    without = [record | {"fd_dinov2_se": None} for record in FOUND]
    assert rows_of(without)["zero"].sampling_error is None


def test_the_table_has_every_row_and_the_words_say_what_it_shows() -> None:
    rows = analyse(study(), FOUND)
    head, _, zero, small, large, odd, late = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in table(study(), rows)
    )
    assert head[2] == "fd_dinov2"
    assert "`zero`" in head[4]
    assert zero == ["`zero`", "3", "120", "4.1", "", "", "baseline"]
    assert small == ["`small`", "4", "126.5", "4.6", "-3", "0.58", "better"]
    assert large[4:] == ["+0.333", "0.67", "no difference seen"]
    assert odd[4:] == ["+3", "", "one seed"]
    assert late == ["`late`", "0", "", "", "", "", "not run"]
    said = paragraph(study(), rows)
    better, undecided = said.index("Better by more"), said.index("No difference seen")
    assert (
        better < said.index("`small` (-3 ± 0.58, 3 seeds)") < undecided < said.index("`large` (+0.333 ± 0.67, 3 seeds)")
    )
    assert "Not run yet: `late`." in said
    assert "Worse" not in said


def test_the_page_keeps_what_stands_around_the_results(tmp_path: Path) -> None:
    folder = tmp_path / "offsets"
    write_page(folder, study(), [])
    assert not (folder / PLOT).exists()
    page = (folder / PAGE).read_text()
    assert page.startswith("# Offsets\n")
    assert "Do offsets help?" in page
    (folder / PAGE).write_text(page.replace("# Offsets\n", "# Offsets\n\nBy hand.\n") + "\nBelow.\n")
    write_page(folder, study(), FOUND)
    page = (folder / PAGE).read_text()
    assert page.startswith("# Offsets\n\nBy hand.\n")
    assert page.endswith("\nBelow.\n")
    assert page.count("| `small` | 4 |") == 1
    assert (folder / PLOT).stat().st_size > 5_000
    write_page(folder, study(), FOUND)
    assert (folder / PAGE).read_text() == page
    (folder / PAGE).write_text("no marks\n")
    with refusal(folder / PAGE, "sfd study run offsets"):
        write_page(folder, study(), FOUND)
    assert (folder / PAGE).read_text() == "no marks\n"

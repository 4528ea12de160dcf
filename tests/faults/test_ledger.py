"""The table of docs/reliability.md is the recorded one, and the ledger counts and speaks up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ledger import PAGE, REPOSITORY, RESULTS, Ledger, page_with, table


def test_the_pages_table_is_the_recorded_one_and_tells_of_nothing_lost() -> None:
    rows = json.loads(RESULTS.read_text())["rows"]
    assert PAGE.read_text() == page_with(rows, PAGE.read_text())
    assert [fault for fault, row in rows.items() if row["lost"] or row["wrong"]] == []


def test_the_readme_quotes_it() -> None:
    *_, total = table(json.loads(RESULTS.read_text())["rows"])
    tried, lost, wrong = (cell.strip(" *") for cell in total.split("|")[2:5])
    assert f"{tried} faults" in (REPOSITORY / "README.md").read_text()
    assert (lost, wrong) == ("0", "0")


def test_what_is_lost_or_wrong_is_counted_and_ends_the_test(tmp_path: Path) -> None:
    ledger = Ledger()
    ledger.note("kill", seconds=1.0)
    ledger.note("kill", seconds=4.0)
    for sort in ("lost", "wrong"):
        with pytest.raises(AssertionError, match="shard"):
            ledger.note("kill", **{sort: ["shard"]})
    (_, _, row, total) = table({fault: vars(found) for fault, found in ledger.rows.items()})
    assert row == "| kill | 4 | 1 | 1 | 2.5 (at most 4.0) |"
    assert total == "| **all** | **4** | **1** | **1** | |"
    ledger.save(tmp_path / "faults.json")
    other = Ledger()
    other.note("cut", tried=3)
    other.save(tmp_path / "faults.json")
    kept = json.loads((tmp_path / "faults.json").read_text())["rows"]
    assert (kept["kill"]["tried"], kept["cut"]["tried"]) == (4, 3)

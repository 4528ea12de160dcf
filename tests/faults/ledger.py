"""What was tried, lost and wrong, and how long it took to recover: the table of docs/reliability.md.

`python tests/faults/ledger.py` puts the recorded table into the page.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sfd_cli.machine import commit, processor

REPOSITORY = Path(__file__).parents[2]
RESULTS, PAGE = REPOSITORY / "benchmarks" / "results" / "faults.json", REPOSITORY / "docs" / "reliability.md"
BEGIN, END = "<!-- rows: python tests/faults/ledger.py -->", "<!-- end of rows -->"


@dataclass
class Row:
    """What became of one kind of fault.

    Attributes:
        tried: how often it was tried.
        lost: what was not there any more afterwards, or had to be made twice.
        wrong: what was not what an undisturbed run leaves, or passed for whole.
        seconds: of each recovery: the run that goes on, until it is done.
    """

    tried: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


class Ledger:
    """All kinds of faults of a session, in the order in which they were tried."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    def note(
        self,
        fault: str,
        *,
        lost: Iterable[str] = (),
        wrong: Iterable[str] = (),
        seconds: float | None = None,
        tried: int = 1,
    ) -> None:
        """Note what became of a try, and end the test where something was lost or wrong.

        Raises:
            AssertionError: something was.
        """
        row, lost, wrong = self.rows.setdefault(fault, Row()), list(lost), list(wrong)
        row.tried += tried
        row.lost += lost
        row.wrong += wrong
        row.seconds += [] if seconds is None else [round(seconds, 2)]
        assert not lost, f"{fault}: lost {lost}"
        assert not wrong, f"{fault}: wrong {wrong}"

    def save(self, path: Path) -> None:
        """Write the rows, over those of the same faults from earlier sessions."""
        kept = json.loads(path.read_text())["rows"] if path.exists() else {}
        rows = kept | {fault: asdict(row) for fault, row in self.rows.items()}
        on = {"processor": processor(), "cores": len(os.sched_getaffinity(0)), "threads": 1}
        path.write_text(json.dumps({"machine": on, "commit": commit(), "rows": rows}, indent=1) + "\n")


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table: fault, times tried, lost, wrong, seconds to recover (median, and the most)."""
    lines = ["| fault | tried | lost | wrong | seconds to recover |", "|---|---:|---:|---:|---|"]
    for fault, row in rows.items():
        seconds = row["seconds"]
        took = f"{statistics.median(seconds):.1f} (at most {max(seconds):.1f})" if seconds else "nothing to recover"
        lines.append(f"| {fault} | {row['tried']:,} | {len(row['lost'])} | {len(row['wrong'])} | {took} |")
    counts = [(row["tried"], len(row["lost"]), len(row["wrong"])) for row in rows.values()]
    tried, lost, wrong = (sum(column) for column in zip(*counts, strict=True))
    return [*lines, f"| **all** | **{tried:,}** | **{lost}** | **{wrong}** | |"]


def page_with(rows: dict[str, dict[str, Any]], page: str) -> str:
    """The text of the page with the table between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return "\n".join([before + BEGIN, "", *table(rows), "", END + after])


if __name__ == "__main__":
    PAGE.write_text(page_with(json.loads(RESULTS.read_text())["rows"], PAGE.read_text()))

"""What a study's results say: rows compared seed by seed with the baseline, and in words no more than the numbers."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

from sfd_cli.studies.results import Record
from sfd_cli.studies.study import Study

# Scores of which more is better, by the beginning of their names.
MORE_IS_BETTER = ("precision", "recall")
BASELINE, NOT_RUN, ALONE, ONE_SEED, UNDECIDED = (
    "baseline",
    "not run",
    "no seed in common",
    "one seed",
    "no difference seen",
)
BETTER, WORSE = "better", "worse"


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: of the row.
        scores: by seed.
        sampling_error: root mean square of the scores' own standard errors, over draws of samples; None without any.
        differences: score less the baseline's of the same seed, by seed, for seeds that both have from machines of one
            kind: another one computes in other formats, which is no part of what a study varies.
        is_baseline: it is the row that others are compared with.
        less_is_better: of the score.
    """

    name: str
    scores: dict[int, float]
    sampling_error: float | None
    differences: dict[int, float]
    is_baseline: bool
    less_is_better: bool

    @property
    def mean(self) -> float | None:
        """Mean score over seeds."""
        return statistics.fmean(self.scores.values()) if self.scores else None

    @property
    def difference(self) -> float | None:
        """Mean paired difference; None for the baseline and where no seed is in common."""
        return statistics.fmean(self.differences.values()) if self.differences and not self.is_baseline else None

    @property
    def error(self) -> float | None:
        """Standard error of the paired difference over seeds, s / sqrt(n) with divisor n - 1; None for one seed."""
        count = len(self.differences)
        return statistics.stdev(self.differences.values()) / math.sqrt(count) if count > 1 else None

    @property
    def seen(self) -> str:
        """Whether the difference is more than two standard errors, and which way."""
        if self.is_baseline:
            return BASELINE if self.scores else NOT_RUN
        if self.difference is None:
            return ALONE if self.scores else NOT_RUN
        if self.error is None:
            return ONE_SEED
        if abs(self.difference) <= 2 * self.error:
            return UNDECIDED
        return BETTER if (self.difference < 0) == self.less_is_better else WORSE


def analyse(study: Study, records: list[Record]) -> list[Row]:
    """The rows of a study, in its order, from what was recorded of its seeds."""
    found: dict[str, dict[int, Record]] = {name: {} for name in study.rows}
    for record in records:
        if record["row"] in found and record["seed"] in study.seeds and study.score in record:
            found[record["row"]][record["seed"]] = record
    scores = {name: {seed: float(runs[seed][study.score]) for seed in sorted(runs)} for name, runs in found.items()}
    return [
        Row(
            name,
            own,
            _root_mean_square([runs.get(f"{study.score}_se") for runs in found[name].values()]),
            {
                seed: score - scores[partner][seed]
                for seed, score in own.items()
                if seed in found[partner] and _kind(found[name][seed]) == _kind(found[partner][seed])
            },
            partner == name,
            not study.score.startswith(MORE_IS_BETTER),
        )
        for name, own in scores.items()
        for partner in [study.partners[name]]
    ]


def _kind(record: Record) -> tuple[Any, ...]:
    """Of the machine: what its results have in common, but for the last bits. Old rows tell less."""
    machine = record.get("machine", {})
    return machine.get("processor"), machine.get("instructions")


def table(study: Study, rows: list[Row]) -> list[str]:
    """Lines of a Markdown table: every row of the study, those not run yet too."""
    head = [
        "row",
        "seeds",
        study.score,
        "s.e. of sampling",
        f"difference to `{study.compared_with}`",
        "s.e. over seeds",
        "seen",
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [f"`{row.name}`", str(len(row.scores)), _shown(row.mean, ".4g"), _shown(row.sampling_error, ".2g")]
        error = None if row.is_baseline else row.error
        cells += [_shown(row.difference, "+.3g"), _shown(error, ".2g"), row.seen]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def paragraph(study: Study, rows: list[Row]) -> str:
    """What was seen, a sentence for every kind of outcome that there is."""
    way = "less" if rows[0].less_is_better else "more"
    data = f" on {study.dataset}" if study.dataset else ""
    said = [f"`{study.score}`{data} ({way} is better), each row less `{study.compared_with}` of the same seed."]
    for outcome, words in (
        (BETTER, "Better by more than two standard errors: {}."),
        (WORSE, "Worse by more than two standard errors: {}."),
        (UNDECIDED, "No difference seen, within two standard errors: {}."),
        (ONE_SEED, "One seed, which tells nothing of the error: {}."),
        (ALONE, "No seed in common with the baseline, from one kind of machine: {}."),
        (NOT_RUN, "Not run yet: {}."),
    ):
        named = [f"`{row.name}`{_amount(row)}" for row in rows if row.seen == outcome]
        if named:
            said.append(words.format(", ".join(named)))
    return " ".join(said)


def _amount(row: Row) -> str:
    if row.difference is None:
        return ""
    error = "" if row.error is None else f" ± {row.error:.2g}, {len(row.differences)} seeds"
    return f" ({row.difference:+.3g}{error})"


def _root_mean_square(values: list[Any]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return math.sqrt(statistics.fmean(value**2 for value in known)) if known else None


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"

"""Scores along a training: those of each milestone by each seed, and the table of their means, spreads and minima."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel

from sfd_cli.config import Settings
from sfd_cli.errors import UserError
from sfd_cli.evaluation.comparison import compare, compare_others
from sfd_cli.evaluation.frechet import FRECHET
from sfd_cli.evaluation.images import ImageSource
from sfd_cli.evaluation.metric import Compared
from sfd_cli.evaluation.scores import headline_scores, summarise
from sfd_cli.evaluation.scoring import Scoring
from sfd_cli.files import atomic_path, read_as, write_json

FOLDER, ROWS, TABLE = "curve", "scores.json", "curve.tsv"
STEP = "step"
MEAN, SPREAD, MINIMUM = "_mean", "_std", "_min"
"""End the names of the table's columns."""


class ScoredSample(BaseModel):
    """The scores of one model by one seed; `model` is its fingerprint, so that another training has other rows."""

    model: str
    seed: int
    scores: dict[str, float]


class SampleScorer:
    """Scores images, the reference's features being computed with the first ones only."""

    def __init__(self, settings: Settings, scoring: Scoring) -> None:
        plain = settings.fid.model_copy(update={"baselines": False})
        self._settings, self._scoring = settings.model_copy(update={"fid": plain}), scoring
        self._compared: dict[str, dict[str, Compared]] | None = None

    def __call__(self, images: ImageSource, what: str) -> dict[str, float]:
        """The scores, as in `metrics/scores.json`, of images; `what` they are, for the progress bar.

        Raises:
            UserError: an image of the reference is damaged, or there are fewer than two on either side.
            StageFailure: a latent or a feature is not finite.
        """
        extractors, options = self._scoring.extractors, self._settings.fid
        if self._compared is None:
            self._compared = compare(self._settings, images, self._scoring.references, extractors)
        else:
            self._compared = compare_others(self._compared, images, what, extractors, options)
        return headline_scores(summarise(self._compared, extractors, {}, options), [one.name for one in extractors])


def read_rows(folder: Path) -> list[ScoredSample]:
    """What was scored so far; nothing where nothing was.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / ROWS
    return read_as(list[ScoredSample], path, "delete it to score all again") if path.exists() else []


def write_rows(folder: Path, rows: Iterable[ScoredSample], models: Mapping[int, str], seeds: Sequence[int]) -> None:
    """Write all scores, and the table of the models that were scored by all of these seeds.

    The table's columns are `step` and for every score its mean, standard deviation (divisor n - 1; nan of one seed) and
    minimum over the seeds.

    Args:
        folder: of both files.
        rows: all scores.
        models: fingerprints by the steps taken.
        seeds: of the samples that count.
    """
    rows = list(rows)
    write_json(folder / ROWS, [row.model_dump() for row in rows])
    found = {(row.model, row.seed): row.scores for row in rows}
    whole = {step: model for step, model in sorted(models.items()) if all((model, seed) in found for seed in seeds)}
    keys = list(dict.fromkeys(key for model in whole.values() for seed in seeds for key in found[model, seed]))
    lines = [[STEP, *(key + end for key in keys for end in (MEAN, SPREAD, MINIMUM))]]
    for step, model in whole.items():
        line = [str(step)]
        for key in keys:
            values = [found[model, seed].get(key, float("nan")) for seed in seeds]
            spread = statistics.stdev(values) if len(values) > 1 else float("nan")
            line += [repr(number) for number in (statistics.fmean(values), spread, min(values))]
        lines.append(line)
    text = io.StringIO(newline="")
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows(lines)
    with atomic_path(folder / TABLE) as temporary:
        temporary.write_text(text.getvalue())


def distances(columns: Iterable[str]) -> dict[str, str]:
    """Of the table's columns the Fréchet distances, by their key in `fid.json`: what each is."""
    keys = [column.removesuffix(MEAN) for column in columns if column.endswith(MEAN)]
    return {key: f"{FRECHET.label} ({key})" for key in keys if key == "fid" or key.startswith("fd_")}


def read_table(path: Path) -> dict[str, list[float]]:
    """The table's columns by name; none where nothing was scored.

    Raises:
        UserError: it is damaged.
    """
    with open(path, newline="") as file:
        header, *lines = [*csv.reader(file, delimiter="\t")] or [[]]
    try:
        columns = [[float(line[place]) for line in lines] for place in range(len(header))]
    except (ValueError, IndexError):
        raise UserError(path, "is not a table of scores", "delete it and run `sfd curve`") from None
    return dict(zip(header, columns, strict=True))

"""`results.json` of a study: a row for every run that was scored, with all that a reader needs to judge it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfd_cli import __version__
from sfd_cli.artifacts.learned_law import with_learned_law
from sfd_cli.config import Settings
from sfd_cli.errors import StageFailure, UserError
from sfd_cli.files import fingerprint, read_json, write_json
from sfd_cli.laws import LEARNED, is_synchronous, law_of
from sfd_cli.machine import commit, machine
from sfd_cli.networks.precision import cpu_instructions
from sfd_cli.studies.layers import lookup
from sfd_cli.studies.study import Study, key_of

RESULTS = "results.json"
# Sections that have no part in a score.
APART = {"runtime", "paths", "report", "metrics"}

Record = dict[str, Any]


def digest(settings: Settings) -> str:
    """What tells whether a recorded run had these settings."""
    return fingerprint(settings.model_dump(mode="json", exclude_defaults=True, exclude=APART))[:12]


def read_results(folder: Path) -> list[Record]:
    """All rows that were recorded; none where nothing was.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / RESULTS
    if not path.exists():
        return []
    found = read_json(path)
    if not isinstance(found, list) or not all(isinstance(one, dict) and {"row", "seed"} <= one.keys() for one in found):
        raise UserError(path, "is not a list of results", "delete it and run the study again")
    return found


def write_results(folder: Path, records: list[Record]) -> None:
    """Write all rows, in one step."""
    write_json(folder / RESULTS, records)


def result_of(
    study: Study,
    row: str,
    seed: int,
    settings: Settings,
    scores: Path,
    taken: Mapping[str, Mapping[str, Any]],
    threads: int,
    learned: Path,
) -> Record:
    """A row of the results.

    `schedule` and `sampled` are the laws of training and of sampling with their numbers, 0 where both streams have one
    time; where `learned`, they are what was found. `<score>_se` is the score's standard error over draws of the
    samples, null where it has none; `seconds` and `cpu_seconds` are those of all stages, shared ones too, null where
    one was interrupted. `encoder` is the one that `fd_dinov2` and others of its scores are of.

    Args:
        study: the study.
        row: its row.
        seed: of transformer and guide.
        settings: of this run.
        scores: its fid.json.
        taken: what each stage took, as `pipeline.make` tells.
        threads: of each process.
        learned: folder of the learned schedule, which there need not be where the transformer follows a given one.

    Raises:
        StageFailure: the score could not be computed.
        UserError: the transformer follows a learned schedule, and there is none.
    """
    found = read_json(scores)
    key = key_of(study.score, settings.fid)
    score = found.get(key)
    if not isinstance(score, int | float):
        reason = found.get(f"{key}_reason", "it is not among them")
        raise StageFailure(scores, f"has no number {key}: {reason}", "see `score` and fid.scores")
    whole = not any(one["resumed"] for one in taken.values())
    values = settings.model_dump(mode="json")
    followed = with_learned_law(settings.dit, learned)
    trained = law_of(followed)
    sampled = settings.sample.with_law(trained)
    return {
        "dataset": study.dataset,
        "row": row,
        "seed": seed,
        "objective": settings.dit.objective,
        "learned": settings.dit.schedule == LEARNED,
        "schedule": 0 if is_synchronous(followed) else trained,
        "sampled": 0 if is_synchronous(sampled) else law_of(sampled),
        "repa": settings.dit.repa,
        "steps": settings.dit.steps,
        study.score: score,
        f"{study.score}_se": found.get(f"{key}_se"),
        "encoder": settings.fid.encoder.short_name,
        "seconds": round(sum(one["seconds"] for one in taken.values()), 1) if whole else None,
        "cpu_seconds": round(sum(one["cpu"] for one in taken.values()), 1) if whole else None,
        **{key: lookup(values, key) for key in study.varied},
        "settings": digest(settings),
        "date": datetime.date.today().isoformat(),
        "version": __version__,
        "commit": commit(),
        "machine": machine() | {"threads": threads, "instructions": cpu_instructions()},
    }

"""`sfd curve`: the scores of a training's milestones, each sampled from the same noise."""

from __future__ import annotations

import math
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from sfd_cli.artifacts.produce import produce
from sfd_cli.artifacts.recipe import Facts, Recipe
from sfd_cli.config import Settings, identity
from sfd_cli.devices import choose_device, described
from sfd_cli.distributed.processes import Processes
from sfd_cli.evaluation.along_training import AlongTraining
from sfd_cli.evaluation.curve import (
    FOLDER,
    MEAN,
    MINIMUM,
    SPREAD,
    STEP,
    TABLE,
    SampleScorer,
    ScoredSample,
    distances,
    read_rows,
    read_table,
    write_rows,
)
from sfd_cli.evaluation.scoring import Scoring
from sfd_cli.files import fingerprint
from sfd_cli.messages import say
from sfd_cli.pipeline.protocol import effective_settings
from sfd_cli.trackers.sending import tracked
from sfd_cli.trackers.tracker import require_trackers
from sfd_cli.weights.fetch import digest
from sfd_cli.weights.models import locate

# What `sfd fid` computes besides, and what moves a score by rounding.
NOT_SCORES = {"beside", "baselines", "batch_size"}


def run(settings: Settings) -> dict[str, Any]:
    """Write `metrics/curve/`: all scores of every milestone and of the finished model, and their table for plots.

    Repeat r of `curve.repeats` is of the seed `sample.seed` + r. Scores are those that `sfd sample` and `sfd fid` give
    of the same model and seed; no images are kept. What was scored before is not sampled again, and more milestones or
    repeats are added to it.

    Returns:
        The summary to print.

    Raises:
        UserError: there are no milestones, one is damaged, or models and settings do not fit together.
        StageFailure: a latent or a feature is not finite.
    """
    require_trackers(settings)
    folder, along = settings.paths.metrics / FOLDER, AlongTraining(settings)
    processes = Processes.join()
    device = processes.device(settings.runtime.device)
    scoring = Scoring.open(settings, along.image_size, device)
    wanted = {"models": {str(step): model for step, model in along.fingerprints.items()}, "repeats": len(along.seeds)}
    summary = produce(
        _recipe(folder, settings, along, scoring),
        load=along.check,
        make=partial(_make, folder, along, SampleScorer(settings, scoring), wanted),
        metrics=settings.paths.metrics,
        is_done=lambda facts: facts == wanted,
        can_mend=lambda _: True,
        tell=lambda _: _summary(folder / TABLE),
    )
    with tracked(settings, FOLDER, processes.is_main):
        return summary


def _recipe(folder: Path, settings: Settings, along: AlongTraining, scoring: Scoring) -> Recipe:
    """What decides a row. Which rows there are is free: each says of which model and seed it is."""
    sample, inputs = along.sample, dict(along.others)
    for extractor in scoring.extractors:
        reference = scoring.references[extractor.name]
        inputs[extractor.name] = fingerprint(extractor.identity)
        inputs[f"{extractor.name}_reference"] = fingerprint([reference.description, reference.contents])
    if settings.fid.reference is not None and (file := locate(settings.fid.reference, "metric")).is_file():
        inputs["reference"] = digest(file)
    chosen = {f"sample.{key}": value for key, value in effective_settings(sample).items()}
    chosen |= {f"fid.{key}": value for key, value in identity(settings.fid, exclude=NOT_SCORES, mode="json").items()}
    free: dict[str, Any] = {"repeats": settings.curve.repeats, "batch_size": sample.batch_size}
    free |= {"device": described(choose_device(settings.runtime.device)), "torch": version("torch")}
    return Recipe("curve", folder, chosen, inputs, free)


def _make(
    folder: Path, along: AlongTraining, score: SampleScorer, facts: Facts, processes: Processes, device: torch.device
) -> Facts:
    """Score what was not scored yet, the processes in turn; rows are written as soon as they are there."""
    rows = processes.broadcast(read_rows(folder) if processes.is_main else [])
    there = {(row.model, row.seed) for row in rows}
    models = along.fingerprints
    todo = [(step, seed) for step in models for seed in along.seeds if (models[step], seed) not in there]
    if processes.is_main:
        write_rows(folder, rows, models, along.seeds)  # there may be other models or repeats than before
    for first in range(0, len(todo), processes.count):
        mine = todo[first + processes.rank : first + processes.rank + 1]
        rows += [row for part in processes.gather(partial(_scored, along, score, mine, device)) for row in part]
        if processes.is_main:
            write_rows(folder, rows, models, along.seeds)
            for step, seed in todo[first : first + processes.count]:
                say(f"scored step {step} with seed {seed}")
    return facts


def _scored(
    along: AlongTraining, score: SampleScorer, mine: list[tuple[int, int]], device: torch.device
) -> list[ScoredSample]:
    return [
        ScoredSample(
            model=along.fingerprints[step], seed=seed, scores=score(along.images(step, seed, device), f"step {step}")
        )
        for step, seed in mine
    ]


def _summary(table: Path) -> dict[str, Any]:
    """The last and the lowest of every Fréchet distance, and where the table is."""
    columns = read_table(table)
    summary: dict[str, Any] = {"models": len(columns[STEP])}
    for key in distances(columns):
        means = columns[key + MEAN]
        summary[key] = {"last": _told(columns, key, -1), "lowest": _told(columns, key, means.index(min(means)))}
    return summary | {"table": str(table)}


def _told(columns: dict[str, list[float]], key: str, place: int) -> str:
    mean, spread, least = (columns[key + end][place] for end in (MEAN, SPREAD, MINIMUM))
    repeats = "" if math.isnan(spread) else f" ± {spread:.2g}, at best {least:.4g}"
    return f"{mean:.4g}{repeats}, step {columns[STEP][place]:.0f}"

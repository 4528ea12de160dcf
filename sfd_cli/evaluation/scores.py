"""All scores of `fid.json`: every chosen metric on the features of every extractor, under the names of the field."""

from __future__ import annotations

from typing import Any

from sfd_cli.config import Fid
from sfd_cli.evaluation.extractors import Extractors
from sfd_cli.evaluation.metric import Compared, Metric
from sfd_cli.evaluation.reasons import Scores, unavailable
from sfd_cli.tables import METRICS


def name_of(extractor: str, key: str) -> str:
    """What a metric's key is in `fid.json`: the field's names for Inception's, with the extractor for others."""
    head, _, tail = key.partition("_")
    if extractor != "inception":
        head = f"{head}_{extractor}"
    elif head == "fd":
        head = "fid"
    return f"{head}_{tail}" if tail else head


def chosen_metrics(options: Fid) -> list[Metric]:
    """The metrics that `fid.metrics` names, in the order of the table."""
    return [METRICS[name] for name in METRICS if name in options.metrics]


def score(compared: Compared, options: Fid) -> Scores:
    """Every chosen metric of one extractor's features, by the metrics' own keys."""
    scores: Scores = {}
    for metric in chosen_metrics(options):
        scores |= metric.compute(compared, options)
    return scores


def summarise(compared: dict[str, Compared], extractors: Extractors, options: Fid) -> dict[str, Any]:
    """Scores and their reasons, `counts` and `notes` of all extractors, as `fid.json` has them.

    Args:
        compared: features by extractor.
        extractors: those of `compared`, and why others are missing.
        options: the section `fid`.
    """
    scores: Scores = {}
    counts: dict[str, Any] = {}
    for name, features in compared.items():
        scores |= _renamed(name, score(features, options))
        counts["samples"] = features.samples.count
        for metric in chosen_metrics(options):
            counts |= _renamed(name, metric.counts(features, options))
        if features.untrained is not None:
            counts["untrained"] = features.untrained.count
    for name, reason in extractors.missing.items():
        first, *others = (score.key for metric in chosen_metrics(options) for score in metric.scores)
        scores |= _renamed(name, unavailable([first], reason))
        scores |= _renamed(name, unavailable(others, f"see {name_of(name, first)}_reason"))
    return scores | {"counts": counts, "notes": _notes(extractors, counts["samples"])}


def _notes(extractors: Extractors, samples: int) -> list[str]:
    """What a reader must know to judge the numbers."""
    return [
        f"{samples} samples are few for {extractor.width} {extractor.name} features: their Fréchet distance is"
        " far above that of a large sample, and compares only with others from as many images."
        for extractor in extractors.found
        if samples <= extractor.width
    ]


def _renamed(extractor: str, values: dict[str, Any]) -> dict[str, Any]:
    return {name_of(extractor, key): value for key, value in values.items()}

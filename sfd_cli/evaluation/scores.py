"""All scores of `fid.json`: every chosen metric on the features of every extractor, under the names of the field."""

from __future__ import annotations

from typing import Any

from sfd_cli.config import Fid
from sfd_cli.evaluation.extractors import Extractor
from sfd_cli.evaluation.metric import Compared, GaussianDistance, Metric
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


def score(compared: Compared, options: Fid) -> tuple[Scores, dict[str, Any]]:
    """Every chosen metric of one extractor's features, and the numbers of images, by the metrics' own keys."""
    scores: Scores = {}
    counts: dict[str, Any] = {}
    for metric in _chosen(options):
        numbers, images = metric.compute(compared, options)
        scores |= numbers
        counts |= images
    return scores, counts


def summarise(
    compared: dict[str, Compared], extractors: list[Extractor], missing: dict[str, str], options: Fid
) -> dict[str, Any]:
    """Scores and their reasons, `counts` and `notes` of all extractors, as `fid.json` has them.

    `compared` holds the features of each of `extractors`; `missing` says why there are no others, by name.
    """
    scores: Scores = {}
    counts: dict[str, Any] = {}
    for name, features in compared.items():
        found, images = score(features, options)
        scores |= _renamed(name, found)
        counts |= {"samples": features.samples.count} | _renamed(name, images)
        if features.untrained is not None:
            counts["untrained"] = features.untrained.count
    keys = [score.key for metric in _chosen(options) for score in metric.scores if not score.baseline]
    for name, reason in missing.items():
        scores |= _renamed(name, unavailable(keys[:1], reason))
        scores |= _renamed(name, unavailable(keys[1:], f"see {name_of(name, keys[0])}_reason"))
    notes = [
        f"{counts['samples']} samples are few for {extractor.width} {extractor.name} features: their Fréchet distance"
        " is far above that of a large sample, and compares only with others from as many images."
        for extractor in extractors
        if counts["samples"] <= extractor.width
    ]
    return scores | {"counts": counts, "notes": notes}


def headline_scores(found: dict[str, Any], extractors: list[str]) -> dict[str, float]:
    """What one compares runs by: the scores of the samples that there are, without baselines, spreads and counts."""
    scores = [score for name in METRICS for score in METRICS[name].scores if not score.baseline]
    keys = [name_of(extractor, score.key) for extractor in extractors for score in scores]
    return {key: found[key] for key in keys if found.get(key) is not None}


def gaussians_suffice(options: Fid) -> bool:
    """Whether no chosen score looks at single images of the reference, nor at halves of it."""
    return not options.baselines and all(isinstance(metric, GaussianDistance) for metric in _chosen(options))


def _chosen(options: Fid) -> list[Metric]:
    """In the order of the table."""
    return [METRICS[name] for name in METRICS if name in options.scores]


def _renamed(extractor: str, values: dict[str, Any]) -> dict[str, Any]:
    return {name_of(extractor, key): value for key, value in values.items()}

"""All scores of `fid.json`: every chosen metric on the features of every extractor, under the names of the field."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sfd_cli.config import Fid
from sfd_cli.evaluation.extractor import POOLED, Extractor
from sfd_cli.evaluation.extractors import EXTRACTORS
from sfd_cli.evaluation.metric import Compared, GaussianDistance, Metric, RowMetric, SampleMetric
from sfd_cli.evaluation.reasons import Scores, unavailable
from sfd_cli.tables import METRICS

HEADLINE = "fd"
"""The number that is looked for first."""
SEE = "see "
"""Begins the reason of a score that another one's reason is the reason of."""
PLAIN = ("inception", "clip")
"""Extractors of which the field's scores are without saying so."""


def name_of(extractor: str, key: str) -> str:
    """A metric's key in `fid.json`: the field's name for Inception's and CLIP's, with the extractor's for others."""
    head, _, tail = key.partition("_")
    if extractor not in PLAIN:
        head = f"{head}_{extractor}"
    elif head == "fd":
        head = "fid"
    return f"{head}_{tail}" if tail else head


def score(compared: dict[str, Compared], options: Fid) -> tuple[Scores, dict[str, Any]]:
    """Every chosen metric of one extractor's features by kind, and the numbers of images, by the metrics' own keys."""
    scores: Scores = {}
    counts: dict[str, Any] = {}
    for metric in chosen(options, compared):
        numbers, images = metric.compute(compared[metric.features], options)
        scores |= numbers
        counts |= images
    return scores, counts


def summarise(
    compared: dict[str, dict[str, Compared]], extractors: list[Extractor], missing: dict[str, str], options: Fid
) -> dict[str, Any]:
    """Scores and their reasons, `counts` and `notes` of all extractors, as `fid.json` has them.

    `compared` holds the features of each of `extractors` by kind; `missing` says why there are no others, by their keys
    in `EXTRACTORS`. `features` are the names of all, in the order of the page, and what the page calls them.
    """
    scores: Scores = {}
    counts: dict[str, Any] = {}
    for name, features in compared.items():
        found, images = score(features, options)
        scores |= renamed(name, found)
        sets = list(features.values())
        counts |= {"samples": sets[0].samples.count} | renamed(name, images)
        if untrained := next((found.untrained for found in sets if found.untrained is not None), None):
            counts["untrained"] = untrained.count
    for missed, reason in missing.items():
        name, metrics = EXTRACTORS[missed].name(options), chosen(options, EXTRACTORS[missed].kinds)
        keys = [score.key for metric in metrics for score in metric.scores if not score.baseline]
        if not keys:
            continue
        scores |= renamed(name, unavailable(keys[:1], reason))
        scores |= renamed(name, unavailable(keys[1:], f"{SEE}{name_of(name, keys[0])}_reason"))
    notes = [
        f"{counts['samples']} samples are few for {width} {extractor.name} features: their Fréchet distance"
        " is far above that of a large sample, and compares only with others from as many images."
        for extractor in extractors
        for width in [extractor.widths.get(POOLED, 0)]
        if counts["samples"] <= width
    ]
    named = {entry.name(options): entry.label(options) for entry in EXTRACTORS.values()}
    return scores | {"features": named, "counts": counts, "notes": notes}


def distances_of(found: dict[str, Any]) -> list[str]:
    """Keys of the Fréchet distances that a `fid.json` has, or says why it has not, in the order of the page."""
    return list(dict.fromkeys(name_of(extractor, HEADLINE) for extractor in found.get("features", {})))


def headline_scores(found: dict[str, Any], extractors: list[str]) -> dict[str, float]:
    """What one compares runs by: the scores of the samples that there are, without baselines, spreads and counts."""
    scores = [score for name in METRICS for score in METRICS[name].scores if not score.baseline]
    keys = [name_of(extractor, score.key) for extractor in extractors for score in scores]
    return {key: found[key] for key in keys if found.get(key) is not None}


def compared_scores(found: dict[str, Any], extractors: list[str]) -> dict[str, float]:
    """What a table of runs has room for: scores with the field's names, and others' Fréchet distances."""
    distances = [name_of(extractor, HEADLINE) for extractor in extractors if extractor not in PLAIN]
    told = {key: found[key] for key in distances if found.get(key) is not None}
    return told | headline_scores(found, [extractor for extractor in extractors if extractor in PLAIN])


def gaussians_suffice(options: Fid) -> bool:
    """Whether no chosen score looks at single images of the reference, nor at halves or classes of it."""
    parts = options.baselines or options.by_class
    return not parts and not any(isinstance(metric, RowMetric) for metric in chosen(options))


def kinds_compared(options: Fid) -> set[str]:
    """The kinds of features that chosen metrics need of the reference."""
    return {metric.features for metric in chosen(options) if not isinstance(metric, SampleMetric)}


def kinds_with_baselines(options: Fid) -> set[str]:
    """The kinds of features that chosen metrics need of an untrained model's images."""
    return {metric.features for metric in chosen(options) if isinstance(metric, GaussianDistance)}


def chosen(options: Fid, kinds: Collection[str] | None = None) -> list[Metric]:
    """The metrics that `fid.scores` names, in the order of the table; those on these kinds of features, or all."""
    metrics: list[Metric] = [METRICS[name] for name in METRICS if name in options.scores]
    return [metric for metric in metrics if kinds is None or metric.features in kinds]


def renamed(extractor: str, values: dict[str, Any]) -> dict[str, Any]:
    """Scores by the metrics' own keys under the names that `fid.json` has."""
    return {name_of(extractor, key): value for key, value in values.items()}

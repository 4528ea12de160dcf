"""Several sets of images in one table: each one's scores, and whether its distances differ from those of the first."""

from __future__ import annotations

from math import hypot
from typing import Any

from sfd_cli.config import Fid
from sfd_cli.distributed.processes import ALONE, Processes
from sfd_cli.evaluation.comparison import compare_others
from sfd_cli.evaluation.extractor import Extractor
from sfd_cli.evaluation.images import ImageSource
from sfd_cli.evaluation.metric import Compared, GaussianDistance
from sfd_cli.evaluation.scores import chosen, headline_scores, name_of, summarise

CLEAR = 2
"""Standard errors of a difference from which on it is called one."""


def score_beside(
    first: dict[str, Any],
    compared: dict[str, dict[str, Compared]],
    others: dict[str, ImageSource],
    extractors: list[Extractor],
    options: Fid,
    processes: Processes = ALONE,
) -> dict[str, dict[str, Any]]:
    """Scores of other images, to the same reference as the first ones; in the first process, nothing in the others.

    Args:
        first: what `summarise` says of the first images.
        compared: their features, by extractor and kind, with the reference's.
        others: other images by the name they are given.
        extractors: those of `compared`.
        options: the section `fid`.
        processes: that share the images and all call this alike.

    Returns:
        By name: scores without baselines, and for each distance that has a standard error on both sides
        `<key>_difference` (less that of the first), `<key>_difference_se`, and `<key>_differs`, whether it is more than
        two of these. The draws of both are taken as independent, which for images from equal noise makes the error too
        large.
    """
    plain = options.model_copy(update={"baselines": False})
    found = {}
    for name, images in others.items():
        theirs = compare_others(compared, images, name, extractors, options, processes)
        if not processes.is_main:
            continue
        summary = summarise(theirs, extractors, {}, plain)
        scores: dict[str, Any] = {"samples": summary["counts"]["samples"]}
        scores |= headline_scores(summary, list(compared))
        for extractor, kinds in compared.items():
            for metric in chosen(options, kinds):
                if isinstance(metric, GaussianDistance):
                    key, error = (name_of(extractor, name) for name in (metric.key, f"{metric.key}_se"))
                    scores |= _difference(key, error, first, summary)
        found[name] = scores
    return found


def _difference(key: str, error: str, first: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    if any(summary.get(error) is None for summary in (first, other)):
        return {}
    difference, together = other[key] - first[key], hypot(first[error], other[error])
    return {
        error: other[error],
        f"{key}_difference": difference,
        f"{key}_difference_se": together,
        f"{key}_differs": abs(difference) > CLEAR * together,
    }

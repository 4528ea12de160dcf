"""Distances class by class: whether some classes are learned worse than others, on data sets of few classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sfd_cli.config import Fid
from sfd_cli.evaluation.extractor import POOLED
from sfd_cli.evaluation.features import FeatureSet
from sfd_cli.evaluation.labels import Labels
from sfd_cli.evaluation.metric import FEWEST_TO_HALVE, NO_REFERENCE, STATISTICS_ONLY, Compared, GaussianDistance
from sfd_cli.evaluation.reasons import NotComputable, Scores, TooFewImages, unavailable
from sfd_cli.evaluation.scores import chosen, name_of

KEY = "by_class"


def class_distances(
    compared: dict[str, dict[str, Compared]], samples: Labels | None, references: dict[str, Labels | None], options: Fid
) -> Scores:
    """The chosen distances of every class: of its samples to its reference images alone.

    They are those of pooled features; of spatial ones there are more than a class has images. From few images a
    Fréchet distance is far too large, the more so the fewer they are, so that classes compare only by what stands
    beside it: `_matched` has the distance of other real images of the class, as many and to the same ones.

    Args:
        compared: features by extractor and kind.
        samples: classes of the samples, where they are known.
        references: classes of each extractor's reference images.
        options: the section `fid`.

    Returns:
        Under `by_class`, by the class's name: `samples`, the number of its samples, and for each distance `<key>`,
        `<key>_reference` (the number of its reference images), `<key>_se` and, with `fid.baselines`, `<key>_matched`,
        each of the same meaning as for all images. None with a reason where there are no labels, or fewer than two
        images of a class on either side.
    """
    found: dict[str, dict[str, Any]] = {}
    try:
        for extractor, kinds in compared.items():
            metrics = [one for one in chosen(options, {POOLED}) if isinstance(one, GaussianDistance)]
            if POOLED not in kinds or not metrics:
                continue
            images = kinds[POOLED]
            mine, theirs = _classes(images, samples, references[extractor])
            assert images.reference is not None
            for name in sorted(set(mine) | set(theirs)):
                ours, real = (
                    _of_class(features, np.array(names) == name, options.seed)
                    for features, names in ((images.samples, mine), (images.reference, theirs))
                )
                scores = found.setdefault(name, {"samples": ours.count})
                for metric in metrics:
                    there = _distances(metric, ours, real, options)
                    scores |= {name_of(extractor, key): value for key, value in there.items()}
    except NotComputable as error:
        return unavailable([KEY], str(error))
    return {KEY: found} if found else unavailable([KEY], "no distance of pooled features is chosen, such as fd")


def class_notes(scores: Scores, widths: dict[str, int]) -> list[str]:
    """What to keep in mind of `class_distances`: `widths` are the features of each extractor."""
    classes = (scores.get(KEY) or {}).values()
    notes = []
    for extractor, width in widths.items():
        numbers = [[found.get("samples"), found.get(name_of(extractor, "fd_reference"))] for found in classes]
        few = sum(min(pair) <= width for pair in numbers if None not in pair)
        if few:
            notes.append(
                f"{few} of {len(numbers)} classes have no more than {width} images on one side, as many as {extractor}"
                " features: their distances are far too large, and compare only with what real images of the class"
                " have, which stands beside them."
            )
    return notes


def class_lines(scores: Scores) -> dict[str, str]:
    """The distances of each class in one line, by its name."""
    return {name: _line(found) for name, found in (scores.get(KEY) or {}).items()}


def _line(found: dict[str, Any]) -> str:
    parts = [f"{found['samples']} samples"]
    for key, value in found.items():
        if isinstance(value, float) and not key.endswith("_se"):
            error, matched = found.get(f"{key}_se"), found.get(f"{key}_matched")
            spread = f" ± {error:.2g}" if error is not None else ""
            beside = f" (like with like {matched['samples']:.4g}, real {matched['real']:.4g})" if matched else ""
            parts.append(f"{key} {value:.4g}{spread}{beside} to {found[f'{key}_reference']}")
        elif key.endswith("_reason"):
            parts.append(str(value))
    return ", ".join(parts)


def _classes(compared: Compared, samples: Labels | None, reference: Labels | None) -> tuple[list[str], list[str]]:
    """The name of the class of every kept row of the samples and of the reference."""
    if compared.reference is None:
        raise NotComputable(STATISTICS_ONLY if compared.statistics else NO_REFERENCE)
    if samples is None or reference is None:
        whose = "the samples" if samples is None else "the reference images"
        raise NotComputable(f"nothing tells the classes of {whose}: neither labels nor a folder for each class")
    return (
        samples.at(compared.samples.kept.tolist()).named_as(reference),
        reference.at(compared.reference.kept.tolist()).named_as(samples),
    )


def _of_class(features: FeatureSet, chosen: np.ndarray, seed: int) -> FeatureSet:
    """Some of the rows, as a set of their own."""
    rows = features.rows[torch.from_numpy(chosen)]
    found = FeatureSet(rows.shape[1], len(rows), seed)
    found.update(rows)
    return found


def _distances(metric: GaussianDistance, ours: FeatureSet, real: FeatureSet, options: Fid) -> Scores:
    key, smaller = metric.key, min(ours.count, real.count)
    scores: Scores = {f"{key}_reference": real.count}
    if smaller < 2:
        return scores | unavailable([key], str(TooFewImages(needed=2, found=smaller)))
    one, other = ours.gaussian(), real.gaussian()
    scores[key] = metric.function(one, other)
    if metric.standard_error is not None:
        scores[f"{key}_se"] = metric.standard_error(ours.rows, one, other)
    if options.baselines and real.count >= FEWEST_TO_HALVE:
        scores[f"{key}_matched"] = metric.matched({"samples": ours}, real, options.seed)
    return scores

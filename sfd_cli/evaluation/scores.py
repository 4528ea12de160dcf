"""The scores of one extractor's features: samples against the reference, and the floor and ceiling beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sfd_cli.evaluation.features import FeatureSet, gaussian_of_subset
from sfd_cli.evaluation.frechet import Gaussian, frechet_distance
from sfd_cli.evaluation.neighbours import kernel_distance, precision_recall

# A score that cannot be computed is None, with the reason under `<name>_reason`.
Scores = dict[str, Any]
METRICS = ("fd", "kid", "precision", "recall")


@dataclass(frozen=True)
class Reference:
    """What samples are compared with, as one extractor sees it.

    Attributes:
        images: features of the reference images, if there are images.
        statistics: published statistics of the reference; a Fréchet distance prefers them to the images.
    """

    images: FeatureSet | None
    statistics: Gaussian | None = None

    @property
    def gaussian(self) -> Gaussian | None:
        """What Fréchet distances are measured to."""
        return self.statistics or (self.images.gaussian() if self.images else None)


def name_of(extractor: str, metric: str) -> str:
    """What a metric is called in `fid.json`: the field's names for Inception's, with the extractor for others."""
    head, _, tail = metric.partition("_")
    if extractor != "inception":
        head = f"{head}_{extractor}"
    elif head == "fd":
        head = "fid"
    return f"{head}_{tail}" if tail else head


def unavailable(metrics: tuple[str, ...], reason: str) -> Scores:
    """None for each of `metrics`, with the reason."""
    return {key: value for metric in metrics for key, value in ((metric, None), (f"{metric}_reason", reason))}


def score(samples: FeatureSet, reference: Reference, neighbours: int, seed: int) -> Scores:
    """Fréchet distance (`fd`), KID (`kid`, `kid_std`), `precision` and `recall` of the samples.

    `neighbours` is the k of precision and recall; `seed` draws KID's subsets.
    """
    against = reference.gaussian
    if against is None:
        return unavailable(METRICS, "the reference has neither images nor statistics of these features")
    scores: Scores = {"fd": frechet_distance(samples.gaussian(), against)}
    if reference.images is None:
        return scores | unavailable(METRICS[1:], "the reference holds statistics only, and this needs its images")
    kid = kernel_distance(samples.rows, reference.images.rows, seed)
    scores |= {"kid": kid["mean"], "kid_std": kid["std"]}
    try:
        scores["precision"], scores["recall"] = precision_recall(samples.rows, reference.images.rows, neighbours)
    except ValueError as error:
        scores |= unavailable(METRICS[2:], str(error))
    return scores


def baselines(
    samples: FeatureSet, untrained: FeatureSet | None, why_none: str, reference: Reference, seed: int
) -> Scores:
    """Where the samples' Fréchet distance stands between ceiling and floor.

    `fd_untrained` is the distance of an untrained model's images, as many as samples and to the same
    reference: the ceiling. `fd_halves` is the distance between two random halves of the reference: the
    floor. A Fréchet distance grows as images get fewer, so the floor is not quite on the same scale;
    `fd_matched` is: see `matched`.

    Args:
        samples: features of the samples.
        untrained: features of the untrained model's images.
        why_none: why there are none.
        reference: what both are compared with.
        seed: draws the images of `matched`.
    """
    scores: Scores = {}
    against = reference.gaussian
    if untrained is None or against is None:
        scores |= unavailable(("fd_untrained",), why_none or "there is no reference for these features")
    else:
        scores["fd_untrained"] = frechet_distance(untrained.gaussian(), against)
    if reference.images is None or reference.images.count < 4:
        return scores | unavailable(("fd_halves", "fd_matched"), "the reference has no images to halve")
    scores["fd_halves"] = frechet_distance(reference.images.half(0), reference.images.half(1))
    named = {"samples": samples} | ({} if untrained is None else {"untrained": untrained})
    return scores | {"fd_matched": matched(named, reference.images, seed)}


def matched(sets: dict[str, FeatureSet], reference: FeatureSet, seed: int) -> dict[str, Any]:
    """Fréchet distances that may be compared with each other: all to one half, from equally many images.

    Every set, and the other half of the reference as `real`, is cut to the same number of random images.

    Args:
        sets: features by name, e.g. of the samples and of an untrained model's images.
        reference: features of the reference images.
        seed: draws the images.

    Returns:
        `images` (compared), `reference_images` (compared to), and the distance of `real` and of each set.
    """
    rows = {"real": reference.first_half_rows()} | {name: found.rows for name, found in sets.items()}
    images = min(len(found) for found in rows.values())
    against = reference.half(1)
    distances = {
        name: frechet_distance(gaussian_of_subset(found, images, seed), against) for name, found in rows.items()
    }
    return {"images": images, "reference_images": against.count, **distances}

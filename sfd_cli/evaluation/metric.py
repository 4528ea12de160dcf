"""What a metric is: numbers from the features of samples and reference, and how the page shows them.

A metric is one entry of `sfd_cli.tables.METRICS` that points to a `GaussianDistance`, a `RowMetric` or a
`SampleMetric`. Keys, counts and baselines in `fid.json` and rows of the page follow from it. Of extractors that do not
give the kind of features it works on there is no such score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sfd_cli.config import Fid
from sfd_cli.evaluation.extractor import LOGITS, POOLED
from sfd_cli.evaluation.features import FeatureSet
from sfd_cli.evaluation.gaussian import Gaussian, gaussian_of_subset
from sfd_cli.evaluation.reasons import NotComputable, Scores, unavailable

NO_REFERENCE = "the reference has neither images nor statistics of these features"
STATISTICS_ONLY = "the reference holds statistics only, and this needs its images"
NO_HALVES = "the reference has no images to halve"
NO_RECONSTRUCTIONS = "the reference has no half of images to reconstruct"
FEWEST_TO_HALVE = 4


@dataclass(frozen=True)
class Reconstructed:
    """Features of one kind of images that went through an autoencoder and came back.

    Attributes:
        features: of what came back.
        originals: the Gaussian of the same images as they were.
    """

    features: FeatureSet
    originals: Gaussian


@dataclass(frozen=True)
class Compared:
    """The features of one kind of one extractor.

    Attributes:
        samples: of the samples.
        reference: of the reference images, if there are any.
        statistics: published statistics of the reference; a distance between Gaussians prefers them to the images.
        untrained: of the images of an untrained model, for the baselines.
        why_untrained_is_missing: the reason where there are none.
        reconstructed: of images of the first half of the reference that went through the autoencoder, likewise.
        why_reconstructed_is_missing: the reason where there are none.
        device: where metrics on rows compute.
    """

    samples: FeatureSet
    reference: FeatureSet | None
    statistics: Gaussian | None = None
    untrained: FeatureSet | None = None
    why_untrained_is_missing: str = ""
    reconstructed: Reconstructed | None = None
    why_reconstructed_is_missing: str = ""
    device: torch.device | str = "cpu"

    @cached_property
    def gaussian(self) -> Gaussian | None:
        """The Gaussian of the reference: what distances are measured to."""
        return self.statistics or (self.reference.gaussian() if self.reference else None)


@dataclass(frozen=True)
class Score:
    """One number that a metric gives.

    Attributes:
        key: in `fid.json`, where `name_of` puts the extractor's name in.
        label: of its row on the page.
        counted: the images behind it. `{samples}` and `{untrained}` are numbers of images, `{compared}` is the pair
            that stands under `counts` for the key, `{reference}` says what a Gaussian was compared with.
        spread: key of its standard deviation.
        baseline: it says where another score stands, and is computed only if `fid.baselines`.
    """

    key: str
    label: str
    counted: str = "{compared[0]:,} samples against {compared[1]:,} images"
    spread: str = ""
    baseline: bool = False


@dataclass(frozen=True)
class RowMetric:
    """A metric on the features of images on both sides.

    Attributes:
        scores: the numbers it gives, in the order of the page.
        function: features of samples (n, D) and of the reference (m, D), float32 on the device that computed them, and
            the section `fid` to numbers by key. Raises NotComputable where they do not allow it.
        features: the kind of features it works on.
    """

    scores: tuple[Score, ...]
    function: Callable[[Tensor, Tensor, Fid], Scores]
    features: str = POOLED

    def compute(self, compared: Compared, options: Fid) -> tuple[Scores, dict[str, Any]]:
        """The numbers, or None and a reason; and how many images stand behind each."""
        keys = [score.key for score in self.scores]
        if compared.reference is None:
            return unavailable(keys, STATISTICS_ONLY if compared.statistics else NO_REFERENCE), {}
        samples, reference = (found.rows.to(compared.device) for found in (compared.samples, compared.reference))
        counts: dict[str, Any] = {key: [len(samples), len(reference)] for key in keys}
        try:
            return self.function(samples, reference, options), counts
        except NotComputable as error:
            return unavailable(keys, str(error)), counts


@dataclass(frozen=True)
class GaussianDistance:
    """A distance between Gaussians fitted to features, with where it stands between floor and ceiling.

    `<key>_untrained` is the distance of the images of an untrained model, as many as samples and to the same
    reference: the ceiling. `<key>_halves` is the distance between two random halves of the reference: the floor. Such
    a distance grows as images get fewer, so the floor is not quite on the same scale; `<key>_matched` is: see
    `matched`. `<key>_reconstructed` is that of images of the reference that went through the autoencoder to the same
    images before: what sampling its latents cannot be better than, and 0 of an autoencoder that loses nothing.

    Attributes:
        key: in `fid.json`.
        label: of its row on the page.
        function: the distance.
        standard_error: over draws of the samples, from their features (n, D), their Gaussian and the reference's; it
            stands under `<key>_se`. Gives None where it cannot tell.
        extrapolate: what it would be from infinitely many samples, from their features, the reference's Gaussian and a
            seed; it stands under `<key>_infinity`. Raises NotComputable where it cannot tell.
        features: the kind of features it works on.
    """

    key: str
    label: str
    function: Callable[[Gaussian, Gaussian], float]
    standard_error: Callable[[Tensor, Gaussian, Gaussian], float | None] | None = None
    extrapolate: Callable[[Tensor, Gaussian, int], float] | None = None
    features: str = POOLED

    @property
    def scores(self) -> tuple[Score, ...]:
        """The distance of the samples, ceiling, what the autoencoder costs, and floor."""
        untrained, halves = f"{self.label} of an untrained model", f"{self.label} between two halves of the data"
        reconstructed = f"{self.label} of images through the autoencoder"
        originals = "{compared[0]:,} against the same {compared[1]:,} as they were"
        return (
            Score(self.key, self.label, "{samples:,} samples against {reference}"),
            Score(f"{self.key}_untrained", untrained, "{untrained:,} images against {reference}", baseline=True),
            Score(f"{self.key}_reconstructed", reconstructed, originals, baseline=True),
            Score(f"{self.key}_halves", halves, "{compared[0]:,} against {compared[1]:,} images", baseline=True),
        )

    def compute(self, compared: Compared, options: Fid) -> tuple[Scores, dict[str, Any]]:
        """The distances, or None and a reason; and how many images stand behind each."""
        key, against, images = self.key, compared.gaussian, compared.reference
        # None where a statistics file does not say.
        counts: dict[str, Any] = {f"{key}_reference": against.count if against else 0}
        scores = self._to_reference(key, compared.samples, against)
        if self.standard_error is not None and against is not None:
            scores[f"{key}_se"] = self.standard_error(compared.samples.rows, compared.samples.gaussian(), against)
        if self.extrapolate is not None and against is not None:
            try:
                scores[f"{key}_infinity"] = self.extrapolate(compared.samples.rows, against, options.seed)
            except NotComputable as error:
                scores |= unavailable([f"{key}_infinity"], str(error))
        if not options.baselines:
            return scores, counts
        scores |= self._to_reference(f"{key}_untrained", compared.untrained, against, compared.why_untrained_is_missing)
        scores |= self._reconstructed(compared)
        if found := compared.reconstructed:
            counts[f"{key}_reconstructed"] = [found.features.count, found.originals.count]
        if images is not None:
            counts[f"{key}_halves"] = list(images.half_counts)
        if images is None or images.count < FEWEST_TO_HALVE:
            return scores | unavailable([f"{key}_halves", f"{key}_matched"], NO_HALVES), counts
        sets = {"samples": compared.samples}
        if compared.reconstructed is not None:
            sets["reconstructed"] = compared.reconstructed.features
        if compared.untrained is not None:
            sets["untrained"] = compared.untrained
        halves = self.function(images.half(0), images.half(1))
        matched = self.matched(sets, images, options.seed)
        return scores | {f"{key}_halves": halves, f"{key}_matched": matched}, counts

    def matched(self, sets: dict[str, FeatureSet], reference: FeatureSet, seed: int) -> dict[str, Any]:
        """Distances that may be compared with each other: all to one half, from equally many images.

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
            name: self.function(gaussian_of_subset(found, images, seed), against) for name, found in rows.items()
        }
        return {"images": images, "reference_images": against.count, **distances}

    def _to_reference(self, key: str, images: FeatureSet | None, against: Gaussian | None, why: str = "") -> Scores:
        if images is None or against is None:
            return unavailable([key], why or NO_REFERENCE)
        return {key: self.function(images.gaussian(), against)}

    def _reconstructed(self, compared: Compared) -> Scores:
        key, found = f"{self.key}_reconstructed", compared.reconstructed
        if found is None:
            return unavailable([key], compared.why_reconstructed_is_missing or NO_RECONSTRUCTIONS)
        return {key: self.function(found.features.gaussian(), found.originals)}


@dataclass(frozen=True)
class SampleMetric:
    """A metric on the features of the samples alone.

    Attributes:
        scores: the numbers it gives.
        function: features of samples (n, D), float32, to numbers by key. Raises NotComputable where they do not
            allow it.
        features: the kind of features it works on.
    """

    scores: tuple[Score, ...]
    function: Callable[[Tensor], Scores]
    features: str = LOGITS

    def compute(self, compared: Compared, options: Fid) -> tuple[Scores, dict[str, Any]]:
        """The numbers, or None and a reason; there are no other images behind them than the samples."""
        try:
            return self.function(compared.samples.rows), {}
        except NotComputable as error:
            return unavailable([score.key for score in self.scores], str(error)), {}


Metric = RowMetric | GaussianDistance | SampleMetric

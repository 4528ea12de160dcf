"""Distances between Gaussians fitted to features, and the floor and ceiling that one is judged by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sfd_cli.config import Fid
from sfd_cli.evaluation.features import FeatureSet
from sfd_cli.evaluation.gaussian import Gaussian, gaussian_of_subset
from sfd_cli.evaluation.metric import NO_REFERENCE, Compared, Score
from sfd_cli.evaluation.reasons import NotComputable, Scores, unavailable

NO_HALVES = "the reference has no images to halve"


@dataclass(frozen=True)
class GaussianDistance:
    """A distance between Gaussians fitted to features, with where it stands between floor and ceiling.

    `<key>_untrained` is the distance of the images of an untrained model, as many as samples and to the same
    reference: the ceiling. `<key>_halves` is the distance between two random halves of the reference: the floor. Such
    a distance grows as images get fewer, so the floor is not quite on the same scale; `<key>_matched` is: see
    `matched`.

    Attributes:
        key: in `fid.json`.
        name: on the page.
        function: the distance.
    """

    key: str
    name: str
    function: Callable[[Gaussian, Gaussian], float]

    @property
    def scores(self) -> tuple[Score, ...]:
        """See `Metric`."""
        label, phrase = f"{self.name}, {{features}}", f"{{features}} {self.name}"
        return (Score(self.key, label, phrase, "{samples:,} samples against {reference}"),)

    @property
    def baselines(self) -> tuple[Score, ...]:
        """See `Metric`."""
        return (
            Score(
                f"{self.key}_untrained",
                f"{self.name} of an untrained model",
                "{features} distance of an untrained model",
                "{untrained:,} images against {reference}",
            ),
            Score(
                f"{self.key}_halves",
                f"{self.name} between two halves of the data",
                "{features} distance between halves of the data",
                "{compared[0]:,} against {compared[1]:,} images",
            ),
        )

    def compute(self, compared: Compared, options: Fid) -> Scores:
        """See `Metric`."""
        try:
            against = compared.reference.gaussian
            if against is None:
                raise NotComputable(NO_REFERENCE)
            scores: Scores = {self.key: self.function(compared.samples.gaussian(), against)}
        except NotComputable as error:
            scores = unavailable([self.key], str(error))
        return scores | (self.compute_baselines(compared, options.seed) if options.baselines else {})

    def compute_baselines(self, compared: Compared, seed: int) -> Scores:
        """Floor and ceiling; `seed` draws the images of `matched`."""
        untrained, reference = compared.untrained, compared.reference
        if untrained is None or reference.gaussian is None:
            why = compared.why_untrained_is_missing or "there is no reference for these features"
            scores = unavailable([f"{self.key}_untrained"], why)
        else:
            scores = {f"{self.key}_untrained": self.function(untrained.gaussian(), reference.gaussian)}
        if reference.images is None or reference.images.count < 4:
            return scores | unavailable([f"{self.key}_halves", f"{self.key}_matched"], NO_HALVES)
        halves = [reference.images.half(which) for which in (0, 1)]
        sets = {"samples": compared.samples} | ({} if untrained is None else {"untrained": untrained})
        return scores | {
            f"{self.key}_halves": self.function(*halves),
            f"{self.key}_matched": self.matched(sets, reference.images, seed),
        }

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

    def counts(self, compared: Compared, options: Fid) -> dict[str, Any]:
        """Images of the reference, None where a statistics file does not say, and of its halves for the baselines."""
        against, images = compared.reference.gaussian, compared.reference.images
        counts: dict[str, Any] = {f"{self.key}_reference": against.count if against else 0}
        if images is not None and options.baselines:
            counts[f"{self.key}_halves"] = list(images.half_counts)
        return counts

"""What a metric is: what it compares, the numbers it gives, and how the page shows them.

A metric is one entry of `sfd_cli.tables.METRICS` that points to an object with the members of `Metric`. Two kinds
cover what the field uses: `GaussianDistance`, which needs moments only, and `RowMetric`, on the features themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor

from sfd_cli.config import Fid
from sfd_cli.evaluation.features import FeatureSet
from sfd_cli.evaluation.gaussian import Gaussian
from sfd_cli.evaluation.reasons import NotComputable, Scores, unavailable

NO_REFERENCE = "the reference has neither images nor statistics of these features"
STATISTICS_ONLY = "the reference holds statistics only, and this needs its images"


@dataclass(frozen=True)
class Reference:
    """What samples are compared with, as one extractor sees it.

    Attributes:
        images: features of the reference images, if there are images.
        statistics: published statistics of the reference; a distance between Gaussians prefers them to the images.
    """

    images: FeatureSet | None
    statistics: Gaussian | None = None

    @cached_property
    def gaussian(self) -> Gaussian | None:
        """What distances between Gaussians are measured to.

        Raises:
            TooFewImages: there are no statistics and one image.
        """
        return self.statistics or (self.images.gaussian() if self.images else None)


@dataclass(frozen=True)
class Compared:
    """The features of one extractor.

    Attributes:
        samples: of the samples.
        reference: of what they are compared with.
        untrained: of the images of an untrained model, for the baselines.
        why_untrained_is_missing: where there are none.
    """

    samples: FeatureSet
    reference: Reference
    untrained: FeatureSet | None = None
    why_untrained_is_missing: str = ""


@dataclass(frozen=True)
class Score:
    """One number that a metric gives, and how the page shows it; `{features}` stands for the extractor's name.

    Attributes:
        key: in `fid.json`; the extractor's name is put in where there are several.
        label: of its row on the page.
        phrase: what it is called in the sentence that says why it is missing.
        counted: the images behind it. `{samples}` and `{untrained}` are numbers of images, `{compared}` is what
            `Metric.counts` gives for the key, `{reference}` says what a Gaussian was compared with.
        spread: key of its standard deviation.
    """

    key: str
    label: str
    phrase: str
    counted: str = "{compared[0]:,} samples against {compared[1]:,} images"
    spread: str = ""


class Metric(Protocol):
    """A way to compare samples with a reference."""

    @property
    def scores(self) -> tuple[Score, ...]:
        """The numbers it gives, in the order of the page."""

    @property
    def baselines(self) -> tuple[Score, ...]:
        """Numbers that say where the first score stands between real images and those of an untrained model."""

    def compute(self, compared: Compared, options: Fid) -> Scores:
        """The numbers by their keys; the baselines too if `options.baselines`; None, with a reason, for what fails."""

    def counts(self, compared: Compared, options: Fid) -> dict[str, Any]:
        """By score, how many images stand behind it."""


@dataclass(frozen=True)
class RowMetric:
    """A metric on the features of images on both sides.

    Attributes:
        scores: see `Metric`.
        function: features of samples (n, D) and of the reference (m, D), float32, and the section `fid` to scores by
            key. Raises NotComputable where they do not allow it.
    """

    scores: tuple[Score, ...]
    function: Callable[[Tensor, Tensor, Fid], Scores]
    baselines: tuple[Score, ...] = ()

    def compute(self, compared: Compared, options: Fid) -> Scores:
        """See `Metric`."""
        keys, reference = [score.key for score in self.scores], compared.reference
        if reference.images is None:
            return unavailable(keys, STATISTICS_ONLY if reference.statistics else NO_REFERENCE)
        try:
            return self.function(compared.samples.rows, reference.images.rows, options)
        except NotComputable as error:
            return unavailable(keys, str(error))

    def counts(self, compared: Compared, options: Fid) -> dict[str, Any]:
        """The images on both sides, by score."""
        images = compared.reference.images
        if images is None:
            return {}
        rows = [len(compared.samples.rows), len(images.rows)]
        return {score.key: rows for score in self.scores}

"""Features of images, for every extractor in one pass: moments of all, and rows of as many as memory allows."""

from __future__ import annotations

import torch
from torch import Tensor

from sfd_cli.distributed.processes import ALONE, Processes
from sfd_cli.errors import StageFailure
from sfd_cli.evaluation.dealing import computed
from sfd_cli.evaluation.extractor import Extractor
from sfd_cli.evaluation.gaussian import FeatureMoments, Gaussian
from sfd_cli.evaluation.images import ImageSource

ROWS_KEPT = 50_000


class FeatureSet:
    """Features of one set of images.

    Args:
        width: features per image, D.
        count: images there will be.
        seed: draws which images form the first half, and which rows are kept when there are more than
            `ROWS_KEPT` (precision, recall and KID work on rows; Fréchet distances on moments of all).
    """

    def __init__(self, width: int, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(count, generator=generator)
        self._first_half = torch.zeros(count, dtype=torch.bool)
        self._first_half[order[: count // 2]] = True
        self._kept = torch.ones(count, dtype=torch.bool)
        if count > ROWS_KEPT:
            self._kept[torch.randperm(count, generator=generator)[ROWS_KEPT:]] = False
        self._halves = (FeatureMoments(width), FeatureMoments(width))
        # Allocated at once: concatenating batches later would need twice the memory.
        self._rows = torch.empty(int(self._kept.sum()), width)
        self._filled = 0

    @property
    def count(self) -> int:
        """Images seen."""
        return sum(self.half_counts)

    @property
    def half_counts(self) -> tuple[int, int]:
        """Images seen of each random half."""
        return self._halves[0].count, self._halves[1].count

    @property
    def rows(self) -> Tensor:
        """Kept features (k, D), float32, in the order of the images."""
        return self._rows[: self._filled]

    @property
    def kept(self) -> Tensor:
        """Which images `rows` are of, by their positions, (k,) int64."""
        return self._kept.nonzero()[: self._filled, 0]

    def half(self, which: int) -> Gaussian:
        """The Gaussian of one random half; the first has floor(count / 2) images."""
        return Gaussian.of(self._halves[which].moments())

    def first_half_rows(self) -> Tensor:
        """Kept features of the first half."""
        return self.rows[self._first_half[self._kept]]

    def first_half_indices(self) -> Tensor:
        """Which images the rows of `first_half_rows` are of, int64 (k,), ascending."""
        return (self._first_half & self._kept).nonzero().flatten()

    def gaussian(self) -> Gaussian:
        """The Gaussian of all images."""
        first, second = self._halves
        return Gaussian.of(first.moments().merge(second.moments()))

    def update(self, features: Tensor) -> None:
        """Add the features (n, D) of the next n images."""
        span = slice(self.count, self.count + len(features))
        first, kept = self._first_half[span], self._kept[span]
        rows = features[kept]
        self._rows[self._filled : self._filled + len(rows)] = rows
        self._filled += len(rows)
        self._halves[0].update(features[first])
        self._halves[1].update(features[~first])


def extract(
    images: ImageSource,
    what: str,
    extractors: list[Extractor],
    size: int,
    seed: int,
    processes: Processes = ALONE,
) -> dict[str, dict[str, FeatureSet]]:
    """Features by extractor and kind: every extractor sees the same images, which are read once.

    Args:
        images: where they come from.
        what: what they are, for the progress bar and for messages.
        extractors: their names and the kinds of their features are the keys of the result.
        size: images per forward pass.
        seed: see `FeatureSet`.
        processes: that share the images and all call this alike; the result is the first one's, others get nothing.

    Raises:
        StageFailure: the number of images is not `images.count`, or a feature is not finite.
    """

    def features(batch: Tensor, end: int) -> dict[str, dict[str, Tensor]]:
        found = {extractor.name: extractor(batch) for extractor in extractors}
        for name, kinds in found.items():
            for kind, rows in kinds.items():
                if not torch.isfinite(rows).all():
                    problem = f"the {kind} {name} features of images up to {end} are not finite"
                    raise StageFailure(what, problem, "no score is computed")
        return found

    sets: dict[str, dict[str, FeatureSet]] = {}
    if processes.is_main:
        sets = {
            extractor.name: {kind: FeatureSet(width, images.count, seed) for kind, width in extractor.widths.items()}
            for extractor in extractors
        }
    for found in computed(images, what, size, features, processes):
        for name, kinds in found.items():
            for kind, rows in kinds.items():
                sets[name][kind].update(rows)
    return sets

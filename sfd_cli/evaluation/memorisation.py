"""Whether samples are copies of training images: how near each comes to one, against how near other real images come.

Small data sets are learned by heart first, and then distances between distributions and precision are at their best.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sfd_cli.data.near_duplicates import near_duplicate_clusters
from sfd_cli.errors import StageFailure
from sfd_cli.evaluation.extractor import POOLED, Extractor
from sfd_cli.evaluation.images import ImageSource

PERCENTILE = 1.0
"""Of the real images' distances: what is nearer than that is near."""
CERTAIN = 3.0
"""Standard errors by which the share of near samples must be above PERCENTILE to speak of memorisation."""
BLOCK = 1024


@dataclass(frozen=True)
class Nearest:
    """The nearest training image of every image of a set.

    Attributes:
        distances: Euclidean, of features, (n,) float64.
        images: positions of the training images, (n,) int64.
    """

    distances: np.ndarray
    images: np.ndarray


@dataclass(frozen=True)
class Memorisation:
    """What the distances say.

    Attributes:
        samples: nearest training image of each sample.
        real: of each training image, those that are near-duplicates of it left out: what an image that is new has.
        threshold: the 1st percentile of the distances of `real`.
        share: of the samples that are nearer than that; 0.01 if they are as new as real images.
        error: standard error of the share of samples that are as new as real images.
    """

    samples: Nearest
    real: Nearest
    threshold: float
    share: float
    error: float

    @property
    def is_found(self) -> bool:
        """Whether more samples are near than chance explains."""
        return self.share > PERCENTILE / 100 + CERTAIN * self.error

    def closest(self, count: int) -> list[int]:
        """The `count` samples nearest to a training image, by distance over none but their order."""
        return np.argsort(self.samples.distances, kind="stable")[:count].tolist()


def two_views(images: ImageSource, what: str, extractor: Extractor, size: int) -> Tensor:
    """Features of images as they are and mirrored, (n, 2, D) float32.

    Raises:
        StageFailure: a feature is not finite.
    """
    found = []
    steps = -(-images.count // size)
    for batch in tqdm(images.batches(size), f"features of {what}", steps, unit="batch", disable=None):
        found.append(torch.stack([extractor(view)[POOLED] for view in (batch, batch.flip(-1))], dim=1))
        if not found[-1].isfinite().all():
            raise StageFailure(what, f"{extractor.name} features are not finite", "nothing is compared")
    return torch.cat(found)


def memorisation(samples: Tensor, training: Tensor) -> Memorisation:
    """Compare samples with the training images they were learned from.

    The distance of an image is that of itself or of its mirror image, whichever is smaller, to the nearest training
    image. What real images have is told by the training images themselves, each without its near-duplicates.

    Args:
        samples: features (n, 2, D), as they are and mirrored.
        training: of the training images, likewise (m, 2, D), two or more.
    """
    centred = training - training[:, 0].mean(dim=0)
    clusters = torch.from_numpy(near_duplicate_clusters(centred.numpy()))
    real = nearest(training, training[:, 0], clusters)
    found = nearest(samples, training[:, 0])
    threshold = float(np.percentile(real.distances, PERCENTILE))
    chance = PERCENTILE / 100
    # Of the threshold as of the share: both are of a count of images.
    error = float(np.sqrt(chance * (1 - chance) * (1 / len(samples) + 1 / len(training))))
    return Memorisation(found, real, threshold, float((found.distances < threshold).mean()), error)


def nearest(views: Tensor, training: Tensor, clusters: Tensor | None = None) -> Nearest:
    """The nearest training image of each image, by its nearest view.

    Args:
        views: features (n, views, D).
        training: of the training images (m, D).
        clusters: of the training images, if they are the images themselves: those of the same one are left out.
    """
    distances, images = torch.empty(len(views), dtype=torch.float64), torch.empty(len(views), dtype=torch.int64)
    training = training.double()
    for start in range(0, len(views), BLOCK):
        rows = slice(start, start + BLOCK)
        block = views[rows].double()
        # Not by the product of both, whose rounding would hide how near a copy is.
        found = torch.cdist(block.flatten(0, 1), training, compute_mode="donot_use_mm_for_euclid_dist")
        apart = found.view(*block.shape[:2], -1).amin(dim=1)
        if clusters is not None:
            apart[clusters[rows, None] == clusters] = torch.inf
        distances[rows], images[rows] = apart.min(dim=1)
    return Nearest(distances.numpy(), images.numpy())

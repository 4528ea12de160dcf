"""Whether samples are copies of training images: how near each comes to one, against how near images held out come.

Small data sets are learned by heart first, and then distances between distributions and precision are at their best.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfd_cli.devices import doubled
from sfd_cli.distributed.processes import ALONE, Processes
from sfd_cli.errors import StageFailure
from sfd_cli.evaluation.dealing import computed
from sfd_cli.evaluation.extractor import POOLED, Extractor
from sfd_cli.evaluation.images import ImageSource

PERCENTILE = 1.0
"""Of the distances of images held out: what is nearer than that is near."""
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
        held_out: nearest other training image of each training image: what an image has that was not learned from.
        threshold: the 1st percentile of the distances of `held_out`.
        share: of the samples that are nearer than that; 0.01 if they are as new as images held out.
        error: standard error of the share of samples that are as new.
    """

    samples: Nearest
    held_out: Nearest
    threshold: float
    share: float
    error: float

    @property
    def is_found(self) -> bool | None:
        """Whether more samples are near than chance explains.

        None where that cannot be told: so many images are there twice that nothing is nearer than these.
        """
        if self.threshold == 0:
            return None
        return self.share > PERCENTILE / 100 + CERTAIN * self.error

    def closest(self, count: int) -> list[int]:
        """The `count` samples nearest to a training image, by distance over none but their order."""
        return np.argsort(self.samples.distances, kind="stable")[:count].tolist()


def two_views(images: ImageSource, what: str, extractor: Extractor, size: int, processes: Processes = ALONE) -> Tensor:
    """Features of images as they are and mirrored, (n, 2, D) float32; in the first process, of none in the others.

    Args:
        images: where they come from.
        what: what they are, for the progress bar and for messages.
        extractor: what gives their features.
        size: images per forward pass.
        processes: that share the images and all call this alike.

    Raises:
        StageFailure: a feature is not finite.
    """

    def features(batch: Tensor, end: int) -> Tensor:
        found = torch.stack([extractor(view)[POOLED] for view in (batch, batch.flip(-1))], dim=1)
        if not found.isfinite().all():
            problem = f"{extractor.name} features of images up to {end} are not finite"
            raise StageFailure(what, problem, "nothing is compared")
        return found

    # At once: concatenating batches at the end would need twice the memory.
    views, filled = torch.empty(images.count if processes.is_main else 0, 2, extractor.widths[POOLED]), 0
    for found in computed(images, what, size, features, processes):
        views[filled : filled + len(found)] = found
        filled += len(found)
    return views


def memorisation(samples: Tensor, training: Tensor, held_out: Tensor) -> Memorisation:
    """Compare samples with the training images they were learned from.

    The distance of an image is that of itself or of its mirror image, whichever is smaller, to the nearest training
    image. What an image that was not learned from has is told by the training images themselves, each compared with all
    others: near-duplicates among them are near here as they are among new images.

    Args:
        samples: features (n, 2, D), as they are and mirrored, on any device.
        training: of the training images, likewise (m, 2, D), two or more.
        held_out: of the training images as they would be had they been sampled, (m, 2, D): after the same losses.
    """
    real = nearest(held_out, training[:, 0], without_itself=True)
    found = nearest(samples, training[:, 0])
    threshold = float(np.percentile(real.distances, PERCENTILE))
    chance = PERCENTILE / 100
    # Of the threshold as of the share: both are of a count of images.
    error = float(np.sqrt(chance * (1 - chance) * (1 / len(samples) + 1 / len(training))))
    return Memorisation(found, real, threshold, float((found.distances < threshold).mean()), error)


def nearest(views: Tensor, training: Tensor, without_itself: bool = False) -> Nearest:
    """The nearest training image of each image, by its nearest view.

    It is looked for by float64 products in blocks, on the features' own device where that has any; beside these there
    is memory for a few blocks. Products round to about 1e-8 of a feature's length, so the distance to what they find is
    then taken by the difference itself, which also tells how near a copy is.

    Args:
        views: features (n, views, D).
        training: of the training images (m, D).
        without_itself: image i is the training image i, with which it is not compared.
    """
    distances, images = torch.empty(len(views), dtype=torch.float64), torch.empty(len(views), dtype=torch.int64)
    for rows in _blocks(len(views)):
        block = doubled(views[rows])
        smallest = torch.full((len(block),), torch.inf, dtype=torch.float64, device=block.device)
        found = torch.zeros(len(block), dtype=torch.int64, device=block.device)
        for others in _blocks(len(training)):
            apart = torch.cdist(block.flatten(0, 1), doubled(training[others]), compute_mode="use_mm_for_euclid_dist")
            apart = apart.view(*block.shape[:2], -1).amin(dim=1)
            if without_itself and rows == others:
                apart.fill_diagonal_(torch.inf)
            here, where = apart.min(dim=1)
            found = torch.where(here < smallest, where + others.start, found)
            smallest = torch.minimum(smallest, here)
        exact = (block - doubled(training[found.to(training.device), None])).norm(dim=2).amin(dim=1)
        distances[rows], images[rows] = torch.where(smallest.isinf(), torch.inf, exact).cpu(), found.cpu()
    return Nearest(distances.numpy(), images.numpy())


def _blocks(count: int) -> list[slice]:
    return [slice(start, start + BLOCK) for start in range(0, count, BLOCK)]

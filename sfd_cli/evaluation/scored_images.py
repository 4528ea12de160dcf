"""The images that are scored: a folder that `sfd sample` wrote, any folder of images, or an npz as ADM's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from sfd_cli.artifacts.sample_folder import Samples, choose
from sfd_cli.config import Settings
from sfd_cli.errors import UserError
from sfd_cli.evaluation.images import ImageFiles, ImageSource
from sfd_cli.evaluation.npz import open_npz


@dataclass(frozen=True)
class ScoredImages:
    """Images to score.

    Attributes:
        images: where they come from.
        side: of the square images, pixels.
        description: where they are, and what made them.
        made: the folder they are in; None for an npz.
    """

    images: ImageSource
    side: int
    description: str
    made: Samples | None = None

    @classmethod
    def open(cls, path: Path, settings: Settings) -> Self:
        """As many images of a folder or an npz as `fid.num_images` says, all where that is unset.

        Raises:
            UserError: there are none, they are unfinished or damaged, or fewer than asked for.
        """
        count, seed = settings.fid.num_images, settings.fid.seed
        if path.suffix == ".npz" and not path.is_dir():
            found, _ = open_npz(path)
            if found is None:
                raise UserError(path, "holds statistics and no images (arr_0)", "give the images, or their folder")
            chosen = choose(found.count, count, seed)
            images: ImageSource = found if len(chosen) == found.count else Chosen(found, torch.tensor(chosen))
            return cls(images, min(found.shape[1:3]), str(path))
        samples = Samples.open(path)
        files = [samples.files[index] for index in choose(len(samples.files), count, seed)]
        return cls(ImageFiles(files, None, settings.runtime.workers), samples.side, samples.description, samples)


@dataclass(frozen=True)
class Chosen:
    """Some images of a source, by their ascending indices."""

    source: ImageSource
    indices: Tensor

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.indices)

    def batches(self, size: int) -> Iterator[Tensor]:
        """See `ImageSource`; batches may be smaller than `size`."""
        start = 0
        for batch in self.source.batches(size):
            here = self.indices[(self.indices >= start) & (self.indices < start + len(batch))] - start
            start += len(batch)
            if len(here):
                yield batch[here]


def images_at(source: ImageSource, indices: list[int]) -> list[np.ndarray]:
    """Single images of a source, (H, W, 3) uint8, in the order of `indices`."""
    ascending = sorted(set(indices))
    if isinstance(source, ImageFiles):
        some: ImageSource = ImageFiles([source.files[index] for index in ascending], source.side, source.workers)
    else:
        some = Chosen(source, torch.tensor(ascending))
    found = [image.permute(1, 2, 0).numpy() for batch in some.batches(64) for image in batch]
    return [found[ascending.index(index)] for index in indices]

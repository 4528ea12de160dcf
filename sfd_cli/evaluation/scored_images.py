"""The images that are scored: a folder that `sfd sample` wrote, any folder of images, or an npz as ADM's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from sfd_cli.artifacts.sample_folder import Samples, choose
from sfd_cli.config import Settings
from sfd_cli.errors import UserError
from sfd_cli.evaluation.images import ImageFiles, ImageSource
from sfd_cli.evaluation.labels import Labels
from sfd_cli.evaluation.npz import npz_labels, open_npz


@dataclass(frozen=True)
class ScoredImages:
    """Images to score.

    Attributes:
        images: where they come from.
        side: of the square images, pixels.
        description: where they are, and what made them.
        made: the folder they are in; None for an npz.
        labels: their classes, where they are asked for and known.
    """

    images: ImageSource
    side: int
    description: str
    made: Samples | None = None
    labels: Labels | None = None

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
            told = npz_labels(found) if settings.fid.by_class else None
            labels = None if told is None else Labels(told).at(chosen)
            return cls(found.at(chosen), min(found.shape[1:3]), str(path), labels=labels)
        samples = Samples.open(path)
        chosen = choose(len(samples.files), count, seed)
        images = ImageFiles([samples.files[index] for index in chosen], None, settings.runtime.threads)
        labels = _labels(samples, path) if settings.fid.by_class else None
        known = None if labels is None else labels.at(chosen)
        return cls(images, samples.side, samples.description, samples, known)


def _labels(samples: Samples, folder: Path) -> Labels | None:
    if samples.class_names:
        return Labels(np.array(samples.labels), tuple(samples.class_names))
    return Labels.of_folders(folder, samples.files)


def images_at(source: ImageSource, indices: list[int]) -> list[np.ndarray]:
    """Single images of a source, (H, W, 3) uint8, in the order of `indices`."""
    ascending = sorted(set(indices))
    found = [image.permute(1, 2, 0).numpy() for batch in source.at(ascending).batches(64) for image in batch]
    return [found[ascending.index(index)] for index in indices]

"""Images to be scored, streamed in batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

from sfd_cli.data.archives import StoredImage
from sfd_cli.data.images import DECODE_ERRORS, center_crop, decode_image, why_not_decoded
from sfd_cli.data.prefetch import threaded_map
from sfd_cli.errors import UserError

READ_AHEAD = 4


class ImageSource(Protocol):
    """Images that are counted beforehand and come in order, batch by batch: files, an npz, or a model's."""

    @property
    def count(self) -> int:
        """Number of images."""
        ...

    def at(self, indices: Sequence[int]) -> Self:
        """Some of the images alone, by their ascending indices."""
        ...

    def batches(self, size: int) -> Iterator[Tensor]:
        """Batches of uint8 (n, 3, H, W), n = `size` but for the last; together exactly `count` images."""
        ...


@dataclass(frozen=True)
class ImageFiles:
    """Image files, decoded by threads while the caller computes.

    `side`: centre-crop to this many pixels, as training did; None: take the images as they are, which
    must then all have one size.
    """

    files: Sequence[Path | StoredImage]
    side: int | None = None
    workers: int = 2

    @property
    def count(self) -> int:
        """Number of files."""
        return len(self.files)

    def at(self, indices: Sequence[int]) -> Self:
        """See `ImageSource`."""
        return replace(self, files=[self.files[index] for index in indices])

    def batches(self, size: int) -> Iterator[Tensor]:
        """See `ImageSource`. Raises UserError, naming the file, for one that does not open or fit."""
        images = threaded_map(self._read, self.files, max(self.workers, 1), ahead=READ_AHEAD * size)
        for start in range(0, self.count, size):
            paths = self.files[start : start + size]
            batch = list(itertools.islice(images, len(paths)))
            for path, image in zip(paths, batch, strict=True):
                if image.shape != batch[0].shape:
                    problem = f"is {_pixels(image)} but {paths[0]} is {_pixels(batch[0])}"
                    raise UserError(path, problem, "all images must have one size")
            yield torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).contiguous()

    def _read(self, path: Path | StoredImage) -> np.ndarray:
        try:
            image = decode_image(path)
        except DECODE_ERRORS as error:
            raise UserError(
                path, f"cannot be read as an image ({why_not_decoded(error)})", "remove or replace it"
            ) from None
        return np.asarray(image if self.side is None else center_crop(image, self.side))


def _pixels(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]} pixels"

"""Where images to be scored come from: a folder of files, the training set, or an npz, streamed in batches."""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import torch
from torch import Tensor

from sfd_cli.data.images import DECODE_ERRORS, center_crop, decode_image
from sfd_cli.data.prefetch import threaded_map
from sfd_cli.errors import UserError
from sfd_cli.evaluation.gaussian import Gaussian

READ_AHEAD = 4
ANEW = "download or make it anew"


class ImageSource(Protocol):
    """Images that are counted beforehand and come in order, batch by batch: files, an npz, or a model's."""

    @property
    def count(self) -> int:
        """Number of images."""
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

    files: list[Path]
    side: int | None = None
    workers: int = 2

    @property
    def count(self) -> int:
        """Number of files."""
        return len(self.files)

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

    def _read(self, path: Path) -> np.ndarray:
        try:
            image = decode_image(path)
        except DECODE_ERRORS as error:
            raise UserError(path, f"cannot be read as an image ({error})", "remove or replace it") from None
        return np.asarray(image if self.side is None else center_crop(image, self.side))


@dataclass(frozen=True)
class NpzImages:
    """The images of an npz, one uint8 member (N, H, W, 3), streamed: it may be larger than memory."""

    path: Path
    member: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of images."""
        return self.shape[0]

    def batches(self, size: int) -> Iterator[Tensor]:
        """See `ImageSource`. Raises UserError when the file ends early."""
        bytes_each = int(np.prod(self.shape[1:]))
        with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as file:
            _npy_header(file)
            for start in range(0, self.count, size):
                number = min(size, self.count - start)
                try:
                    raw = file.read(number * bytes_each)
                except zipfile.BadZipFile as error:
                    raise UserError(self.path, f"its member {self.member} is damaged ({error})", ANEW) from None
                if len(raw) != number * bytes_each:
                    problem = f"its member {self.member} ends after {start} of {self.count} images"
                    raise UserError(self.path, problem, ANEW)
                images = np.frombuffer(raw, np.uint8).reshape(number, *self.shape[1:])
                yield torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


@dataclass(frozen=True)
class NpzReference:
    """What an npz offers as a reference: images, statistics (mu and sigma), or both, as ADM's batches do."""

    path: Path
    images: NpzImages | None
    statistics: Gaussian | None


def open_npz(path: Path) -> NpzReference:
    """Look into a reference npz without reading its images.

    Statistics are the members `mu` (D,) and `sigma` (D, D), with an optional scalar `count`; images are the
    first uint8 member of shape (N, H, W, 3), `arr_0` in ADM's format.

    Raises:
        UserError: not an npz, or neither images nor statistics in it.
    """
    headers = _npz_headers(path)
    images = None
    for member, (dtype, shape, fortran) in headers.items():
        if dtype == np.uint8 and len(shape) == 4 and shape[3] == 3 and not fortran:
            images = NpzImages(Path(path), member, shape)
            break
    statistics = _statistics(path) if {"mu.npy", "sigma.npy"} <= set(headers) else None
    if images is None and statistics is None:
        there = ", ".join(f"{member.removesuffix('.npy')} {shape}" for member, (_, shape, _) in headers.items())
        raise UserError(
            path,
            f"holds neither images (uint8, N x H x W x 3) nor statistics (mu, sigma); it has: {there}",
            "give an npz with one of them",
        )
    return NpzReference(Path(path), images, statistics)


def _statistics(path: Path) -> Gaussian:
    with np.load(path, allow_pickle=False) as archive:
        mean = np.asarray(archive["mu"], dtype=np.float64)
        covariance = np.asarray(archive["sigma"], dtype=np.float64)
        count = int(archive["count"]) if "count" in archive else None
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UserError(path, f"mu {mean.shape} and sigma {covariance.shape} do not fit together", ANEW)
    found = Gaussian(mean, covariance, count)
    if not found.is_finite:
        raise UserError(path, "mu or sigma hold values that are not finite", ANEW)
    return found


Header = tuple[np.dtype, tuple[int, ...], bool]


def _npz_headers(path: Path) -> dict[str, Header]:
    try:
        with zipfile.ZipFile(path) as archive:
            headers = {}
            for member in archive.namelist():
                with archive.open(member) as file:
                    headers[member] = _npy_header(file)
            return headers
    except FileNotFoundError:
        raise UserError(path, "does not exist", "check fid.reference") from None
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise UserError(path, f"is not a readable npz ({error})", ANEW) from None


def _npy_header(file: IO[bytes]) -> Header:
    """(dtype, shape, Fortran order) from the head of an npy stream, leaving it at the first byte of data."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return dtype, shape, fortran


def _pixels(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]} pixels"

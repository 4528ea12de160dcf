"""A reference in one npz: images, statistics of features, or both, as ADM's batches have them."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import IO, Self

import numpy as np
import torch
from torch import Tensor

from sfd_cli.errors import UserError
from sfd_cli.evaluation.gaussian import Gaussian
from sfd_cli.files import DAMAGED_ARCHIVE

REPLACE = "download or make it again"
SKIPPED_AT_ONCE = 64
STATISTICS = (("mu", "sigma"), ("mu_s", "sigma_s"))
Header = tuple[tuple[int, ...], bool, np.dtype]  # shape, Fortran order, dtype


@dataclass(frozen=True)
class NpzImages:
    """The images of an npz, one uint8 member (N, H, W, 3), streamed: it may be larger than memory.

    `rows`: those that are wanted, ascending; None: all.
    """

    path: Path
    member: str
    shape: tuple[int, ...]
    rows: Sequence[int] | None = None

    @property
    def count(self) -> int:
        """Number of images that are wanted."""
        return self.shape[0] if self.rows is None else len(self.rows)

    def at(self, indices: Sequence[int]) -> Self:
        """See `ImageSource`."""
        return replace(self, rows=list(indices) if self.rows is None else [self.rows[index] for index in indices])

    def batches(self, size: int) -> Iterator[Tensor]:
        """See `ImageSource`. Raises UserError when the file ends early or is damaged, wherever that is.

        For a checksum to tell of damage a member must be read whole, so images that are not wanted are read as well.
        """
        wanted: Sequence[int] = range(self.shape[0]) if self.rows is None else self.rows
        with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as file:
            _npy_header(file)
            next_row = 0
            for start in range(0, len(wanted), size):
                batch = []
                for first, end in _runs(wanted[start : start + size]):
                    self._skip(file, next_row, first)
                    batch.append(self._read(file, first, end))
                    next_row = end
                yield torch.from_numpy(np.concatenate(batch).transpose(0, 3, 1, 2).copy())
            self._skip(file, next_row, self.shape[0])

    def _skip(self, file: IO[bytes], first: int, end: int) -> None:
        for start in range(first, end, SKIPPED_AT_ONCE):
            self._read(file, start, min(start + SKIPPED_AT_ONCE, end))

    def _read(self, file: IO[bytes], first: int, end: int) -> np.ndarray:
        """Images `first` up to `end`, at the first of which the file is."""
        size = (end - first) * int(np.prod(self.shape[1:]))
        try:
            raw = file.read(size)
        except DAMAGED_ARCHIVE as error:
            raise UserError(self.path, f"its member {self.member} is damaged ({error})", REPLACE) from None
        if len(raw) != size:
            problem = f"its member {self.member} ends after {first} of {self.shape[0]} images"
            raise UserError(self.path, problem, REPLACE)
        return np.frombuffer(raw, np.uint8).reshape(end - first, *self.shape[1:])


def _runs(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and end of every run of ascending rows without a gap."""
    first = rows[0]
    for row, following in pairwise([*rows, -1]):
        if following != row + 1:
            yield first, row + 1
            first = following


def npz_labels(images: NpzImages) -> np.ndarray | None:
    """The labels of all images of an npz, its member `arr_1` as in ADM's batches, int64 (N,).

    None where it has none, or they are not whole numbers, one for each image.

    Raises:
        UserError: they are damaged.
    """
    try:
        with zipfile.ZipFile(images.path) as archive:
            found = _read_array(archive, "arr_1") if "arr_1.npy" in archive.namelist() else None
    except DAMAGED_ARCHIVE as error:
        raise UserError(images.path, f"its member arr_1 cannot be read ({error})", REPLACE) from None
    if found is None or found.dtype.kind not in "iu" or found.shape != images.shape[:1]:
        return None
    return found.astype(np.int64)


def open_npz(path: Path) -> tuple[NpzImages | None, tuple[Gaussian, ...]]:
    """The images and the statistics of a reference npz, without reading its images.

    Statistics are the members `mu` (D,) and `sigma` (D, D), and `mu_s` and `sigma_s` of spatial features, with an
    optional scalar `count`; images are the first uint8 member of shape (N, H, W, 3), `arr_0` in ADM's format.

    Raises:
        UserError: not an npz, or neither images nor statistics in it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            headers = {member: _npy_header(archive.open(member)) for member in archive.namelist()}
    except FileNotFoundError:
        raise UserError(path, "does not exist", "check fid.reference") from None
    except DAMAGED_ARCHIVE as error:
        raise UserError(path, f"is not a readable npz ({error})", REPLACE) from None
    stacks = (
        NpzImages(path, member, shape)
        for member, (shape, fortran, dtype) in headers.items()
        if dtype == np.uint8 and len(shape) == 4 and shape[3] == 3 and not fortran
    )
    images = next(stacks, None)
    pairs = [pair for pair in STATISTICS if {f"{member}.npy" for member in pair} <= set(headers)]
    statistics = tuple(_read_statistics(path, *pair) for pair in pairs)
    if images is None and not statistics:
        members = ", ".join(f"{member.removesuffix('.npy')} {shape}" for member, (shape, _, _) in headers.items())
        problem = f"holds neither images (uint8, N x H x W x 3) nor statistics (mu, sigma), but {members}"
        raise UserError(path, problem, "give an npz with one of them")
    return images, statistics


def _read_statistics(path: Path, mu: str, sigma: str) -> Gaussian:
    try:
        with zipfile.ZipFile(path) as archive:
            mean, covariance = (_read_array(archive, name).astype(np.float64) for name in (mu, sigma))
            count = int(_read_array(archive, "count")) if "count.npy" in archive.namelist() else None
    except DAMAGED_ARCHIVE as error:
        raise UserError(path, f"its {mu}, {sigma} or count cannot be read ({error})", REPLACE) from None
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UserError(path, f"{mu} {mean.shape} and {sigma} {covariance.shape} do not fit together", REPLACE)
    found = Gaussian(mean, covariance, count)
    if not found.is_finite:
        raise UserError(path, f"{mu} or {sigma} hold values that are not finite", REPLACE)
    return found


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """The member of this name; not by `np.load`, which takes a damaged archive for pickled objects."""
    with archive.open(f"{name}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _npy_header(file: IO[bytes]) -> Header:
    """Reads the head of an npy stream and leaves it at the first byte of data."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)

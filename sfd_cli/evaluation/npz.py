"""A reference in one npz: images, statistics of features, or both, as ADM's batches have them."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from sfd_cli.errors import UserError
from sfd_cli.evaluation.gaussian import Gaussian
from sfd_cli.files import DAMAGED_ARCHIVE

REPLACE = "download or make it again"
STATISTICS = (("mu", "sigma"), ("mu_s", "sigma_s"))
Header = tuple[tuple[int, ...], bool, np.dtype]  # shape, Fortran order, dtype


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
                except DAMAGED_ARCHIVE as error:
                    raise UserError(self.path, f"its member {self.member} is damaged ({error})", REPLACE) from None
                if len(raw) != number * bytes_each:
                    problem = f"its member {self.member} ends after {start} of {self.count} images"
                    raise UserError(self.path, problem, REPLACE)
                images = np.frombuffer(raw, np.uint8).reshape(number, *self.shape[1:])
                yield torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


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

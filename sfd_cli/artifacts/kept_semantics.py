"""The semantic latents of samples, beside their images: they are scored too, and no PNG has them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from sfd_cli.errors import UserError
from sfd_cli.files import atomic_path

SEMANTICS = "semantics.npy"
# NumPy's errors for a file that is no array, or cut short.
UNREADABLE = (OSError, ValueError, EOFError, SyntaxError)


class KeptSemantics:
    """`semantics.npy` of a sample folder that is being written, by several processes at once if need be.

    Float32 (N, C_s, h, w), not normalised: as the latent store has them. What is not written yet is NaN, and lies on
    the disk as such before any image does, so that what a power cut took is found again.

    Args:
        folder: the sample folder.
        shape: (N, C_s, h, w).
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int, int]) -> None:
        self.path, self.shape = folder / SEMANTICS, shape

    def prepare(self) -> None:
        """Make the file, unless an interrupted run left one."""
        if self._opened() is None:
            empty = np.full(self.shape[1:], np.nan, np.float32).tobytes()
            header = {"descr": "<f4", "fortran_order": False, "shape": self.shape}
            # Not by a mapped file, which a full disk would end without a word.
            with atomic_path(self.path) as temporary, open(temporary, "wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                for _ in range(self.shape[0]):
                    file.write(empty)

    def missing(self, indices: Iterable[int]) -> list[int]:
        """Those of `indices` whose latent is not there, or not whole."""
        file = self._written()
        return [index for index in indices if not np.isfinite(file[index]).all()]

    def write(self, indices: list[int], latents: np.ndarray) -> None:
        """Write the latents (n, C_s, h, w) of the images `indices`."""
        self._written()[indices] = latents

    def _written(self) -> np.memmap:
        file = self._opened()
        assert file is not None, "prepare comes first"
        return file

    def _opened(self) -> np.memmap | None:
        try:
            file = np.lib.format.open_memmap(self.path, "r+")
        except UNREADABLE:
            return None
        return file if file.shape == self.shape and file.dtype == np.float32 else None


def read_semantics(path: Path) -> np.ndarray:
    """The latents (N, C_s, h, w) float32 of a finished file, mapped.

    Raises:
        UserError: it is gone or damaged.
    """
    try:
        found = np.load(path, mmap_mode="r")
    except UNREADABLE as error:
        raise UserError(path, f"cannot be read ({error})", "run `sfd sample` again") from None
    if found.ndim != 4:
        raise UserError(path, f"holds an array of shape {found.shape}, not latents", "run `sfd sample` again")
    return found

"""Sharded HDF5 stores of per-image arrays, read from known places in the files.

A store is a folder of `shard-NNNNN.h5`, each whole or absent, and an `index.h5` whose virtual data sets
present them as one. Any HDF5 program can open either; no array needs this module to be read. `data/shards.py` writes
stores: uncompressed and in one piece per field, so that every array has a known place in its file. In every shard
`crc32/<field>` (n, flips) holds the CRC-32 of each view of each image, which is compared when it is first read: HDF5's
own checksums are for data sets in chunks. `extras/` has what writers keep about a shard, and the keys by which a later
store takes its rows over (`data/kept_rows.py`).
"""

from __future__ import annotations

import errno
import json
import os
import resource
import weakref
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sfd_cli.checksums import forget
from sfd_cli.errors import UserError
from sfd_cli.messages import say

INDEX = "index.h5"
CHECKS = "crc32"
SHARDS = "shard-*.h5"
"""Names of the shards of a store; hidden ones are half written."""
# Reads only what is in the page cache; where a system lacks it, every read is an ordinary one.
CACHED_ONLY = getattr(os, "RWF_NOWAIT", 0)
# Files that the rest of the program may need beside the shards.
SPARE_FILES = 512


@dataclass(frozen=True)
class Field:
    """One array per image: its shape, whose first axis is (as is, flipped) or (as is) alone, and its dtype."""

    shape: tuple[int, ...]
    dtype: str = "float16"


def shard_name(shard: int) -> str:
    """File name of a shard."""
    return f"shard-{shard:05d}.h5"


class Store:
    """A finished store, for reading. Safe to share between threads, to fork and to pickle.

    Attributes:
        fields: what is stored of every image.
        labels: class index of every image, int64 (n,).
        indices: index of every image in the manifest it was made from, int64 (n,).
        classes: class names.
        statistics: arrays by name; of a latent store `mean` and `std`, float64 (C,).
        attributes: what the writer noted.
        fingerprint: of what made it.

    Raises:
        UserError: there is no store, or a shard is missing, truncated, of another store, or of another dtype or layout.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        path = self.folder / INDEX
        if not path.exists():
            raise UserError(folder, f"holds no finished store ({INDEX} is missing)", "run the stage that writes it")
        try:
            with h5py.File(path, "r") as index:
                self._read_index(index)
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, RecursionError) as error:
            raise UserError(path, f"is damaged ({error})", _AGAIN) from None
        shards = -(-len(self) // self._shard_size)
        _allow_open_files(shards + SPARE_FILES)
        self._files: list[int] = []
        weakref.finalize(self, _close, self._files)
        # Where a field begins in every shard's file, bytes.
        self._offsets = {name: np.zeros(shards, np.int64) for name in self.fields}
        # CRC-32 of every view of every image, and whether it is still to be compared; shards of old have none.
        views = {name: (len(self), field.shape[0]) for name, field in self.fields.items()}
        self._checks = {name: np.zeros(shape, np.uint32) for name, shape in views.items()}
        self._unchecked = {name: np.zeros(shape, bool) for name, shape in views.items()}
        for shard in range(shards):
            self._open_shard(shard)

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple[type[Store], tuple[Path]]:
        return Store, (self.folder,)

    @property
    def flips(self) -> int:
        """Views that are stored of every image: 2 (as is, flipped), or 1 (as is)."""
        return min(field.shape[0] for field in self.fields.values())

    def read(
        self,
        field: str,
        indices: Sequence[int] | np.ndarray,
        flips: Sequence[int] | np.ndarray | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """The arrays of a batch, in the order of `indices`, repeats allowed.

        Args:
            field: a name in `fields`.
            indices: positions in this store, (n,).
            flips: 0 (as is) or 1 (flipped) for every image, (n,); without it all that are stored are returned.
            out: array to fill and return, such as pinned memory; reusing one halves the time for large arrays.

        Returns:
            (n, *shape) without `flips`, (n, *shape[1:]) with; the dtype of the field.

        Raises:
            IndexError: a position or a flip is outside the store.
            ValueError: not a flip for every image; or `out` is of another shape or dtype, or not contiguous.
            UserError: a file was cut short since the store was opened, or does not hold what was written.
        """
        positions = np.asarray(indices, np.int64)
        flipped = None if flips is None else np.asarray(flips, np.int64)
        shape, dtype = self.fields[field].shape, np.dtype(self.fields[field].dtype)
        _require_within(positions, len(self), "positions")
        if flipped is not None:
            _require_within(flipped, shape[0], "flips")
        per_image = (len(positions), *(shape if flipped is None else shape[1:]))
        batch = np.empty(per_image, dtype) if out is None else out
        if (batch.shape, batch.dtype) != (per_image, dtype) or not batch.flags.c_contiguous:
            raise ValueError(f"out has shape {batch.shape} and {batch.dtype}, not {per_image} and {dtype}, contiguous")
        shards, rows = np.divmod(positions, self._shard_size)
        size = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
        pieces = rows * shape[0] if flipped is None else rows * shape[0] + flipped
        self._read_pieces(batch, shards, self._offsets[field][shards] + pieces * size)
        self._check(batch, field, positions, flipped)
        return batch

    def _check(self, batch: np.ndarray, field: str, positions: np.ndarray, flips: np.ndarray | None) -> None:
        """Compare what is read for the first time with its CRC-32."""
        rows, views = (positions[:, None], np.arange(batch.shape[1])) if flips is None else (positions, flips)
        unchecked = self._unchecked[field][rows, views]
        if not unchecked.any():
            return
        found = checks_of(batch, 1).squeeze(1) if flips is not None else checks_of(batch, batch.shape[1])
        wrong = unchecked & (found != self._checks[field][rows, views])
        if wrong.any():
            position = int(positions[np.argwhere(wrong)[0][0]])
            forget(self.folder)  # whose files are else taken for whole by their times
            path = self.folder / shard_name(position // self._shard_size)
            raise UserError(path, f"is damaged: {field} of image {position} is not what was written", _AGAIN)
        self._unchecked[field][rows, views] = False

    def _read_pieces(self, batch: np.ndarray, shards: np.ndarray, begins: np.ndarray) -> None:
        """Fill `batch` with what begins at bytes `begins` of the files of `shards`.

        Plain reads rather than memory maps: file pages do not count as the program's memory, and a file cut short or
        a failing disk is an error and no crash. What is not in the page cache is announced first and read last, so
        that the disk works on many images at a time.
        """
        if not batch.size:
            return
        memory = batch.reshape(-1).view(np.uint8).data
        size = batch.nbytes // len(batch)
        late = []
        for place, (shard, begin) in enumerate(zip(shards.tolist(), begins.tolist(), strict=True)):
            piece = memory[place * size : (place + 1) * size]
            try:
                count = os.preadv(self._files[shard], (piece,), begin, CACHED_ONLY)
            except OSError:  # nothing of it is there, or this file system cannot tell
                count = 0
            if count < size:
                _announce(self._files[shard], begin, size)
                late.append((piece, shard, begin))
        for piece, shard, begin in late:
            self._read_whole(piece, shard, begin)

    def _read_whole(self, piece: memoryview, shard: int, begin: int) -> None:
        done = 0
        while done < len(piece):
            count = os.preadv(self._files[shard], (piece[done:],), begin + done)
            if not count:
                raise UserError(self.folder / shard_name(shard), "was cut short", _AGAIN)
            done += count

    @cached_property
    def files(self) -> list[str]:
        """Source file of every image, relative to the root of the manifest; a million take a moment to decode."""
        with h5py.File(self.folder / INDEX, "r") as index:
            return _read_texts(index, "files")

    def _read_index(self, index: h5py.File) -> None:
        self.fingerprint = str(index.attrs["fingerprint"])
        self._shard_size = int(index.attrs["shard_size"])
        if self._shard_size < 1:
            raise ValueError(f"shard_size is {self._shard_size}")
        self.attributes: dict[str, Any] = json.loads(index.attrs["attributes"])
        if not isinstance(self.attributes, dict):
            raise ValueError("its attributes are no names and values")
        self.fields = {
            name: Field(data.shape[1:], data.dtype.str)
            for name, data in index.items()
            if isinstance(data, h5py.Dataset) and data.is_virtual
        }
        self.labels = _read_list(index, "labels", "i")
        self.indices = _read_list(index, "indices", "i")
        self.classes = _read_texts(index, "classes")
        statistics = index.get("statistics", {})
        self.statistics = {name: _read_list(statistics, name, "f") for name in statistics}
        if not self.fields or not all(len(field.shape) > 1 and all(field.shape) for field in self.fields.values()):
            raise ValueError("it has no fields, or empty ones")
        if len(self.labels) == 0 or len(self.indices) != len(self.labels):
            raise ValueError(f"{len(self.labels)} labels for {len(self.indices)} images")
        if self.labels.min() < 0 or (self.classes and self.labels.max() >= len(self.classes)):
            raise ValueError(f"labels {self.labels.min()} to {self.labels.max()} of {len(self.classes)} classes")
        if not all(np.isfinite(values).all() for values in self.statistics.values()):
            raise ValueError("its statistics are not finite")

    def _open_shard(self, shard: int) -> None:
        """Open a shard's file and note where its fields begin."""
        path = self.folder / shard_name(shard)
        count = min(self._shard_size, len(self) - shard * self._shard_size)
        try:
            self._files.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            with h5py.File(path, "r") as file:
                if file.attrs.get("fingerprint") != self.fingerprint:
                    raise UserError(path, f"was made by other settings than {self.folder / INDEX}", _AGAIN)
                for name, field in self.fields.items():
                    if (problem := misfit(file[name], count, field)) is not None:
                        raise UserError(path, f"{name} {problem}", _AGAIN)
                    self._offsets[name][shard] = file[name].id.get_offset()
                    if CHECKS in file:
                        rows = slice(shard * self._shard_size, shard * self._shard_size + count)
                        self._checks[name][rows] = file[f"{CHECKS}/{name}"]
                        self._unchecked[name][rows] = True
        except FileNotFoundError:
            raise UserError(path, "is missing", _AGAIN) from None
        except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, OSError) and error.errno == errno.EMFILE:
                remedy = "raise `ulimit -n`, or write the store again with a larger shard_size"
                raise UserError(self.folder, "has more shards than files may be open at once", remedy) from None
            raise UserError(path, f"is truncated or damaged ({error})", f"delete it and {_AGAIN}") from None


def checks_of(arrays: np.ndarray, flips: int) -> np.ndarray:
    """CRC-32 of each view of images (n, flips, ...), contiguous: uint32 (n, flips)."""
    memory, views = arrays.reshape(-1).view(np.uint8).data, len(arrays) * flips
    size = len(memory) // max(views, 1)
    checks = [zlib.crc32(memory[view * size : (view + 1) * size]) for view in range(views)]
    return np.array(checks, np.uint32).reshape(len(arrays), flips)


def is_readable(folder: Path) -> bool:
    """Whether a store is all there; says what is not."""
    try:
        Store(folder)
    except UserError as error:
        say(f"repairing: {error}")
        return False
    return True


def misfit(data: h5py.Dataset, count: int, field: Field) -> str | None:
    """What keeps a shard's data set from being `field` of `count` images in one piece; None where nothing does.

    Arrays are read as bytes from a known place, so another layout or dtype would come out as something else.
    """
    if data.shape != (count, *field.shape):
        return f"has shape {data.shape}, not {(count, *field.shape)}"
    if data.dtype != field.dtype:
        return f"is stored as {data.dtype.str}, not {np.dtype(field.dtype).str}"
    if data.id.get_offset() is None:
        return f"is not stored in one piece (chunks: {data.chunks}, compression: {data.compression})"
    return None


_AGAIN = "run the stage that writes this store again"


def _allow_open_files(count: int) -> None:
    """Raise this process's own limit to `count` open files, as far as it may; a shell's is often 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        most = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)


def _announce(file: int, begin: int, size: int) -> None:
    """Tell the system that these bytes are read soon."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, begin, size, os.POSIX_FADV_WILLNEED)


def _require_within(values: np.ndarray, count: int, what: str) -> None:
    if len(values) and not (values.min() >= 0 and values.max() < count):
        raise IndexError(f"{what} {values.min()} to {values.max()}, but there are {count}")


def _read_list(file: h5py.Group, name: str, kind: str) -> np.ndarray:
    """A data set of one axis and a kind of dtype ("i", "f" or "S"), all of whose values are in the file.

    Raises:
        ValueError: it is something else. HDF5 lets a file of a kilobyte claim a terabyte of zeros.
    """
    data = file[name]
    if not isinstance(data, h5py.Dataset) or data.ndim != 1 or data.dtype.kind != kind:
        raise ValueError(f"{name} is no list of the kind that is written here")
    if data.id.get_storage_size() != data.size * data.dtype.itemsize:
        raise ValueError(f"{name} is not stored in one piece")
    return data[:]


def _read_texts(file: h5py.File, name: str) -> list[str]:
    return [text.decode() for text in _read_list(file, name, "S")]

"""Sharded HDF5 stores of per-image arrays: written shard by shard and resumable, read from known places in the files.

A store is a folder of `shard-NNNNN.h5`, each whole or absent, and an `index.h5` whose virtual data sets
present them as one. Any HDF5 program can open either; no array needs this module to be read.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sfd_cli.errors import StageFailure, UserError
from sfd_cli.files import atomic_path

INDEX = "index.h5"
EXTRAS = "extras"
PAGE = 4096
# Reads only what is in the page cache; where a system lacks it, every read is an ordinary one.
CACHED_ONLY = getattr(os, "RWF_NOWAIT", 0)
# Files that the rest of the program may need beside the shards.
SPARE_FILES = 512


@dataclass(frozen=True)
class Field:
    """One array per image: its shape, whose first axis is (as is, flipped), and its dtype."""

    shape: tuple[int, ...]
    dtype: str = "float16"


def shard_name(shard: int) -> str:
    """File name of a shard."""
    return f"shard-{shard:05d}.h5"


class ShardWriter:
    """Fills one shard piece by piece, so that a shard need not fit in memory."""

    def __init__(self, file: h5py.File, fields: Mapping[str, Field], count: int) -> None:
        self._file = file
        self._unwritten = dict.fromkeys(fields, count)
        for name, field in fields.items():
            file.create_dataset(name, (count, *field.shape), field.dtype)

    def write(self, start: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Put the arrays of consecutive images at row `start` of this shard; every row is written once."""
        for name, array in arrays.items():
            data = self._file[name]
            if array.shape[1:] != data.shape[1:] or start + len(array) > len(data):
                raise ValueError(f"{name}: {array.shape} does not fit at row {start} of {data.shape}")
            data[start : start + len(array)] = array
            self._unwritten[name] -= len(array)

    def keep(self, name: str, array: np.ndarray) -> None:
        """Keep a small array about the whole shard, to be had again from `StoreWriter.extra`."""
        self._file.create_dataset(f"{EXTRAS}/{name}", data=array)

    def check_filled(self) -> None:
        """Raise ValueError if rows were left out."""
        missing = {name: rows for name, rows in self._unwritten.items() if rows}
        if missing:
            raise ValueError(f"{self._file.filename} was left with rows unwritten: {missing}")


class StoreWriter:
    """Writes a store; what a killed run left behind is taken up again shard by shard.

    Args:
        folder: the store.
        fields: the arrays of every image.
        count: images in the store.
        shard_size: images per shard; the last one may hold fewer.
        fingerprint: of everything that decides the contents; shards of another are not taken up.
        attributes: JSON-able facts kept in the index.
    """

    def __init__(
        self,
        folder: Path,
        fields: Mapping[str, Field],
        count: int,
        shard_size: int,
        fingerprint: str,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.fields = dict(fields)
        self.count = count
        self.shard_size = shard_size
        self.fingerprint = fingerprint
        self.attributes = dict(attributes or {})

    @property
    def shard_count(self) -> int:
        """Shards of the whole store."""
        return -(-self.count // self.shard_size)

    def rows(self, shard: int) -> range:
        """Positions in the store that `shard` holds."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.count))

    def finished_shards(self) -> set[int]:
        """Shards that are there, whole, and of this store's fingerprint."""
        return {shard for shard in range(self.shard_count) if self._is_finished(shard)}

    def remove_leftovers(self) -> None:
        """Delete what a killed writer left half written. Not while another process writes here."""
        for path in self.folder.glob(".*.h5.*.tmp"):
            path.unlink()

    @contextmanager
    def shard(self, shard: int) -> Iterator[ShardWriter]:
        """Write one shard piece by piece; it gets its name, fsynced, only when the block ends without error."""
        with (
            atomic_path(self.folder / shard_name(shard)) as temporary,
            h5py.File(temporary, "w", alignment_threshold=PAGE, alignment_interval=PAGE) as file,
        ):
            file.attrs["fingerprint"] = self.fingerprint
            writer = ShardWriter(file, self.fields, len(self.rows(shard)))
            yield writer
            writer.check_filled()

    def write_shard(self, shard: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Write one shard from arrays of all its images, (n, *field shape)."""
        with self.shard(shard) as writer:
            writer.write(0, arrays)

    def extra(self, shard: int, name: str) -> np.ndarray:
        """A small array that `ShardWriter.keep` put into a finished shard."""
        with h5py.File(self.folder / shard_name(shard), "r") as file:
            return np.asarray(file[f"{EXTRAS}/{name}"])

    def finish(
        self,
        labels: Sequence[int],
        files: Sequence[str],
        indices: Sequence[int],
        classes: Sequence[str],
        statistics: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Write the index over all shards.

        Args:
            labels: class index of every image, in the store's order.
            files: source file of every image, relative to the manifest's root.
            indices: index of every image in the manifest.
            classes: class names.
            statistics: arrays such as per-channel `mean` and `std`.

        Raises:
            StageFailure: a shard is missing or not whole.
        """
        missing = sorted(set(range(self.shard_count)) - self.finished_shards())
        if missing:
            raise StageFailure(f"{self.folder}: shards {missing} are missing; run the same command again")
        with atomic_path(self.folder / INDEX) as temporary, h5py.File(temporary, "w") as index:
            index.attrs["fingerprint"] = self.fingerprint
            index.attrs["shard_size"] = self.shard_size
            index.attrs["attributes"] = json.dumps(self.attributes, sort_keys=True)
            for name, field in self.fields.items():
                self._create_virtual(index, name, field)
            index["labels"] = np.asarray(labels, np.int64)
            index["indices"] = np.asarray(indices, np.int64)
            _write_texts(index, "files", files)
            _write_texts(index, "classes", classes)
            for name, values in (statistics or {}).items():
                index[f"statistics/{name}"] = values

    def _create_virtual(self, index: h5py.File, name: str, field: Field) -> None:
        """A data set of `index` that presents `name` of all shards, found beside the index, as one.

        Through HDF5's own calls, because h5py's would put the time of day into the file.
        """
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_layout(h5py.h5d.VIRTUAL)
        properties.set_obj_track_times(False)
        whole = h5py.h5s.create_simple((self.count, *field.shape))
        for shard in range(self.shard_count):
            rows = self.rows(shard)
            shape = (len(rows), *field.shape)
            part = whole.copy()
            part.select_hyperslab((rows.start, *(0 for _ in field.shape)), shape)
            properties.set_virtual(part, shard_name(shard).encode(), name.encode(), h5py.h5s.create_simple(shape))
        kind = h5py.h5t.py_create(np.dtype(field.dtype), logical=True)
        h5py.h5d.create(index.id, name.encode(), kind, whole, properties)

    def _is_finished(self, shard: int) -> bool:
        try:
            with h5py.File(self.folder / shard_name(shard), "r") as file:
                rows = len(self.rows(shard))
                return file.attrs.get("fingerprint") == self.fingerprint and all(
                    name in file and file[name].shape == (rows, *field.shape) and file[name].dtype == field.dtype
                    for name, field in self.fields.items()
                )
        except OSError:
            return False


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
        UserError: there is no store, or a shard is missing, truncated or of another store.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        path = self.folder / INDEX
        if not path.exists():
            raise UserError(f"{folder} holds no finished store ({INDEX} is missing); run the stage that writes it")
        try:
            with h5py.File(path, "r") as index:
                self._read_index(index)
        except (OSError, KeyError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error}); run the stage that writes it again") from None
        shards = -(-len(self) // self._shard_size)
        _allow_open_files(shards + SPARE_FILES)
        self._files: list[int] = []
        weakref.finalize(self, _close, self._files)
        # Where a field begins in every shard's file, bytes; -1 where HDF5 must find it (chunked or compressed).
        self._offsets = {name: np.full(shards, -1, np.int64) for name in self.fields}
        for shard in range(shards):
            self._open_shard(shard)

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple[type[Store], tuple[Path]]:
        return Store, (self.folder,)

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
            flips: 0 (as is) or 1 (flipped) for every image, (n,); without it both are returned.
            out: array to fill and return, such as pinned memory; reusing one halves the time for large arrays.

        Returns:
            (n, *shape) without `flips`, (n, *shape[1:]) with; the dtype of the field.

        Raises:
            IndexError: a position or a flip is outside the store.
            ValueError: not a flip for every image; or `out` is of another shape or dtype, or not contiguous.
            UserError: a file was cut short since the store was opened.
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
        picks = rows[:, None] if flipped is None else np.stack((rows, flipped), axis=1)
        pieces = rows * shape[0] if flipped is None else rows * shape[0] + flipped
        begins = self._offsets[field][shards]
        direct = np.flatnonzero(begins >= 0)
        self._read_pieces(batch, direct, shards[direct], (begins + pieces * size)[direct])
        for shard in np.unique(shards[begins < 0]).tolist():
            here = np.flatnonzero(shards == shard)
            self._read_through_hdf5(batch, here, field, shard, picks[here])
        return batch

    def _read_pieces(self, batch: np.ndarray, places: np.ndarray, shards: np.ndarray, begins: np.ndarray) -> None:
        """Fill `batch[places]` from byte `begins` of the files of `shards`.

        Plain reads rather than memory maps: they count no file pages as the program's memory, and a file that is cut
        short or a disk that fails is an error and no crash. What is not in the page cache is asked for all at once
        and read last, so that the disk works on many images at a time and not on one after the other.
        """
        if not batch.size:
            return
        memory = batch.reshape(-1).view(np.uint8).data
        size = batch.nbytes // len(batch)
        late = []
        for place, shard, begin in zip(places.tolist(), shards.tolist(), begins.tolist(), strict=True):
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
                raise UserError(f"{self.folder / shard_name(shard)} was cut short; {_AGAIN}")
            done += count

    def _read_through_hdf5(
        self, batch: np.ndarray, places: np.ndarray, field: str, shard: int, picks: np.ndarray
    ) -> None:
        """Fill `batch[places]` from `picks`, rows or (row, flip), of a chunked or compressed shard.

        One by one: h5py is tens of times slower at a list of rows than at the rows.
        """
        with h5py.File(self.folder / shard_name(shard), "r") as file:
            data = file[field]
            for place, pick in zip(places.tolist(), picks.tolist(), strict=True):
                batch[place] = data[tuple(pick)]

    @cached_property
    def files(self) -> list[str]:
        """Source file of every image, relative to the root of the manifest; a million take a moment to decode."""
        with h5py.File(self.folder / INDEX, "r") as index:
            return _read_texts(index, "files")

    def _read_index(self, index: h5py.File) -> None:
        self.fingerprint = str(index.attrs["fingerprint"])
        self._shard_size = int(index.attrs["shard_size"])
        self.attributes: dict[str, Any] = json.loads(index.attrs["attributes"])
        self.fields = {
            name: Field(data.shape[1:], data.dtype.str)
            for name, data in index.items()
            if isinstance(data, h5py.Dataset) and data.is_virtual
        }
        self.labels: np.ndarray = index["labels"][:]
        self.indices: np.ndarray = index["indices"][:]
        self.classes = _read_texts(index, "classes")
        self.statistics = {name: values[:] for name, values in index.get("statistics", {}).items()}

    def _open_shard(self, shard: int) -> None:
        """Open a shard's file and note where its fields begin."""
        path = self.folder / shard_name(shard)
        count = min(self._shard_size, len(self) - shard * self._shard_size)
        try:
            self._files.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            with h5py.File(path, "r") as file:
                if file.attrs.get("fingerprint") != self.fingerprint:
                    raise UserError(f"{path} was made by other settings than {self.folder / INDEX}; {_AGAIN}")
                for name, field in self.fields.items():
                    data = file[name]
                    if data.shape != (count, *field.shape):
                        raise UserError(f"{path}: {name} has shape {data.shape}, not {(count, *field.shape)}; {_AGAIN}")
                    offset = data.id.get_offset()
                    if offset is not None and data.dtype == field.dtype:
                        self._offsets[name][shard] = offset
        except FileNotFoundError:
            raise UserError(f"{path} is missing; {_AGAIN}") from None
        except (OSError, KeyError, ValueError) as error:
            if isinstance(error, OSError) and error.errno == errno.EMFILE:
                raise UserError(
                    f"{self.folder} has more shards than files may be open at once; raise `ulimit -n`, or write the"
                    " store again with a larger shard_size"
                ) from None
            raise UserError(f"{path} is truncated or damaged ({error}); delete it and {_AGAIN}") from None


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


def _write_texts(file: h5py.File, name: str, texts: Sequence[str]) -> None:
    """Texts as fixed-length UTF-8, whose bytes in the file are determined by the texts alone."""
    encoded = [text.encode() for text in texts]
    kind = h5py.string_dtype("utf-8", max(map(len, encoded), default=1))
    file.create_dataset(name, data=np.array(encoded, kind), dtype=kind)


def _read_texts(file: h5py.File, name: str) -> list[str]:
    return [text.decode() for text in file[name][:]]

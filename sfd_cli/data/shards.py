"""Writes HDF5 stores shard by shard, so that a killed run goes on and several processes share the work."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
from tqdm import tqdm

from sfd_cli.data.moments import Moments
from sfd_cli.data.prefetch import prefetched
from sfd_cli.data.store import CHECKS, INDEX, Field, checks_of, misfit, shard_name
from sfd_cli.errors import StageFailure
from sfd_cli.files import appears, atomic_path
from sfd_cli.messages import say
from sfd_cli.progress import progress

EXTRAS = "extras"
KEYS = f"{EXTRAS}/keys"  # of a shard's rows, uint8 (n, bytes), see data/kept_rows.py
PAGE = 4096
# Batches made in advance, so that the device goes on while a finished shard is forced to the disk.
AHEAD = 4
CHANNEL_AXIS = 2
"""Of latents (n, flips, C, h, w), the axis that statistics keep."""

Batch = TypeVar("Batch")
Arrays = Mapping[str, np.ndarray]


class ShardWriter:
    """Fills one shard piece by piece, so that a shard need not fit in memory."""

    def __init__(self, file: h5py.File, fields: Mapping[str, Field], count: int) -> None:
        self._file = file
        self._unwritten = dict.fromkeys(fields, count)
        for name, field in fields.items():
            file.create_dataset(name, (count, *field.shape), field.dtype)
            file.create_dataset(f"{CHECKS}/{name}", (count, field.shape[0]), np.uint32)

    def write(self, start: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Put the arrays of consecutive images at row `start` of this shard; every row is written once."""
        for name, array in arrays.items():
            data = self._file[name]
            if array.shape[1:] != data.shape[1:] or start + len(array) > len(data):
                raise ValueError(f"{name}: {array.shape} does not fit at row {start} of {data.shape}")
            stored = np.ascontiguousarray(array, data.dtype)
            data[start : start + len(array)] = stored
            self._file[f"{CHECKS}/{name}"][start : start + len(array)] = checks_of(stored, data.shape[1])
            self._unwritten[name] -= len(array)

    def keep(self, name: str, array: np.ndarray) -> None:
        """Keep a small array about the whole shard; `StoreWriter.extra` reads it."""
        self._file.create_dataset(f"{EXTRAS}/{name}", data=array)

    def check_filled(self) -> None:
        """Raise ValueError if rows were left out."""
        missing = {name: rows for name, rows in self._unwritten.items() if rows}
        if missing:
            raise ValueError(f"{self._file.filename} was left with rows unwritten: {missing}")


class StoreWriter:
    """Writes a store; finished shards of a killed run are kept.

    Args:
        folder: the store.
        fields: the arrays of every image.
        count: images in the store.
        shard_size: images per shard; the last one may hold fewer.
        fingerprint: of everything that decides the contents; shards of another are not kept.
        attributes: JSON-able facts kept in the index.
        keys: of all rows, as many bytes each, by which a later store takes rows over.
    """

    def __init__(
        self,
        folder: Path,
        fields: Mapping[str, Field],
        count: int,
        shard_size: int,
        fingerprint: str,
        attributes: Mapping[str, Any] | None = None,
        keys: Sequence[bytes] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.fields = dict(fields)
        self.count = count
        self.shard_size = shard_size
        self.fingerprint = fingerprint
        self.attributes = dict(attributes or {})
        self.keys = keys

    @property
    def shard_count(self) -> int:
        """Shards of the whole store."""
        return -(-self.count // self.shard_size)

    def rows(self, shard: int) -> range:
        """Positions in the store that `shard` holds."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.count))

    def finished_shards(self, among: Iterable[int] | None = None) -> set[int]:
        """Shards, of all or `among` these, that are there, whole, and of this store's fingerprint."""
        return {shard for shard in (range(self.shard_count) if among is None else among) if self._is_finished(shard)}

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
            rows = self.rows(shard)
            writer = ShardWriter(file, self.fields, len(rows))
            yield writer
            writer.check_filled()
            if self.keys is not None:
                keys = b"".join(self.keys[rows.start : rows.stop])
                file[KEYS] = np.frombuffer(keys, np.uint8).reshape(len(rows), -1)

    def write_shard(self, shard: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Write one shard from arrays of all its images, (n, *field shape)."""
        with self.shard(shard) as writer:
            writer.write(0, arrays)

    def extra(self, shard: int, name: str) -> np.ndarray:
        """A small array that `ShardWriter.keep` put into a finished shard."""
        with h5py.File(self.folder / shard_name(shard), "r") as file:
            return np.asarray(file[f"{EXTRAS}/{name}"])

    def require_shards(self, others: bool = False) -> None:
        """Check that all shards are whole; what `others`, on other machines, have just written may be seen late.

        Raises:
            StageFailure: one is missing or not whole.
        """

        def missing() -> list[int]:
            return sorted(set(range(self.shard_count)) - self.finished_shards())

        if others:
            appears(lambda: not missing(), self.folder)
        if found := missing():
            raise StageFailure(self.folder, f"shards {found} are missing", "run the same command again")

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
        self.require_shards()
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
                    name in file and misfit(file[name], rows, field) is None for name, field in self.fields.items()
                )
        except OSError:
            return False


def write_shards(
    writer: StoreWriter,
    batches_of: Callable[[range], Sequence[Batch]],
    make: Callable[[Sequence[Batch]], Iterable[Arrays]],
    *,
    doing: str,
    streams: Sequence[str] = (),
    share: tuple[int, int] = (0, 1),
) -> None:
    """Write those shards of this process's share that are not there yet.

    Batches never cross a shard's end: a resumed run sees the same batches, and makes the same bytes.

    Args:
        writer: of the store.
        batches_of: positions of a shard in the store -> batches that make it up.
        make: batches -> arrays (n, *field shape) of each, made in a thread, ahead of the writing.
        doing: what the progress bar says.
        streams: fields of latents (n, flips, C, h, w) whose moments per channel are kept for `stream_statistics`.
        share: this process and how many there are, (rank, count); they take the shards in turn.
    """
    rank, processes = share
    if not rank and processes > writer.shard_count:
        idle = f"{processes - writer.shard_count} of {processes} processes have no shard to make"
        say(f"{doing}: {idle}; there are {writer.shard_count}, and a smaller shard_size makes more")
    mine = range(rank, writer.shard_count, processes)
    finished = writer.finished_shards(mine)
    if finished:
        say(f"going on after {len(finished)} of {len(mine)} shards")
    plan = {shard: batches_of(writer.rows(shard)) for shard in mine if shard not in finished}
    # One stream over all shards: the next shard's batches are made while this one is written.
    stream = prefetched(make([batch for batches in plan.values() for batch in batches]), AHEAD)
    bar = progress(
        doing=doing,
        total=sum(len(writer.rows(shard)) for shard in mine),
        initial=sum(len(writer.rows(shard)) for shard in finished),
        unit="image",
        silent=bool(rank),
    )
    with closing(stream), bar:
        for shard, batches in plan.items():
            with writer.shard(shard) as file:
                _fill(file, islice(stream, len(batches)), streams, bar)


def _fill(file: ShardWriter, batches: Iterable[Arrays], streams: Sequence[str], bar: tqdm) -> None:
    """Write a whole shard and the moments of its `streams`."""
    moments: dict[str, list[Moments]] = {name: [] for name in streams}
    row = 0
    for arrays in batches:
        file.write(row, arrays)
        for name in streams:
            moments[name].append(Moments.of(arrays[name], CHANNEL_AXIS))
        count = len(next(iter(arrays.values())))
        row += count
        bar.update(count)
    for name in streams:
        file.keep(f"moments_{name}", Moments.merged(moments[name]).to_array())


def split(rows: range, size: int) -> list[range]:
    """Consecutive pieces of `rows`, `size` long but for the last."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def stream_statistics(
    writer: StoreWriter, streams: Sequence[str], one_scale: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """`mean` and `std` (C,) of the channels of all `streams`, one after the other, over the finished shards.

    Merged in the order of the shards, whoever wrote them. The channels of the streams in `one_scale` get one std, the
    root of the mean of their variances.
    """
    merged = [
        Moments.merged(
            Moments.from_array(writer.extra(shard, f"moments_{name}")) for shard in range(writer.shard_count)
        )
        for name in streams
    ]
    return {
        "mean": np.concatenate([part.mean for part in merged]),
        "std": np.concatenate(
            [
                np.full_like(part.std, np.sqrt(np.square(part.std).mean())) if name in one_scale else part.std
                for name, part in zip(streams, merged, strict=True)
            ]
        ),
    }


def _write_texts(file: h5py.File, name: str, texts: Sequence[str]) -> None:
    """Texts as fixed-length UTF-8, whose bytes in the file are determined by the texts alone."""
    encoded = [text.encode() for text in texts]
    kind = h5py.string_dtype("utf-8", max(map(len, encoded), default=1))
    file.create_dataset(name, data=np.array(encoded, kind), dtype=kind)

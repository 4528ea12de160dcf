"""Rows that older stores hold already, found by keys of all that decides a row's bytes, and read by their checksums.

Every shard keeps the keys of its rows itself, so that those of a run that was never finished are found too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

from sfd_cli.data.shards import KEYS, Arrays
from sfd_cli.data.store import CHECKS, SHARDS, Field, checks_of, misfit
from sfd_cli.messages import say

KEY_BYTES = 16
# What h5py is known to raise on files that are damaged, or of something else.
UNREADABLE = (OSError, KeyError, TypeError, ValueError, RuntimeError, AttributeError)

Make = Callable[[Sequence[Sequence[int]]], Iterable[Arrays]]


def row_keys(recipe: str, rows: Iterable[bytes]) -> list[bytes]:
    """Keys of rows: what decides the bytes of them all, a fingerprint (hex), together with what decides each."""
    secret = bytes.fromhex(recipe)
    return [hashlib.blake2b(row, key=secret, digest_size=KEY_BYTES).digest() for row in rows]


def stored_keys(folder: Path, fields: Mapping[str, Field]) -> list[bytes]:
    """Keys of the rows of a store in their order; of rows that have none, or lie in a damaged shard, nothing."""
    return [key for path in sorted(Path(folder).glob(SHARDS)) for key in _keys_of(path, fields)]


class KeptRows:
    """Rows of a store that is to be written which others hold already.

    Args:
        folders: of the others, finished or not.
        fields: the arrays of every row; shards with other fields hold none.
        keys: of the rows to be written, in their order.
    """

    def __init__(self, folders: Iterable[Path], fields: Mapping[str, Field], keys: Sequence[bytes]) -> None:
        self.fields = dict(fields)
        self._paths: list[Path] = []
        self._damaged: set[Path] = set()
        # Of every row to be written: which of the files holds it, -1 for none, and where in there.
        self._shards, self._rows = np.full(len(keys), -1), np.zeros(len(keys), np.int64)
        wanted: dict[bytes, list[int]] = {}
        for position, key in enumerate(keys):
            wanted.setdefault(key, []).append(position)
        for path in (path for folder in folders for path in sorted(folder.glob(SHARDS))):
            for row, key in enumerate(_keys_of(path, self.fields)):
                if positions := wanted.pop(key, None):
                    self._shards[positions], self._rows[positions] = len(self._paths), row
            self._paths.append(path)

    def __len__(self) -> int:
        return int((self._shards >= 0).sum())

    def holds(self, positions: Sequence[int]) -> np.ndarray:
        """Which of the rows to be written at these positions are here: bool (n,)."""
        return self._shards[np.asarray(positions)] >= 0

    def read(self, positions: Sequence[int]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The rows to be written at these positions, and which of them are here and as they were written.

        Returns:
            Arrays (n, *field shape), anything where a row is not here, and bool (n,).
        """
        rows, whole = np.asarray(positions), np.zeros(len(positions), bool)
        arrays = {name: np.empty((len(rows), *field.shape), field.dtype) for name, field in self.fields.items()}
        shards = self._shards[rows]
        for shard in np.unique(shards[shards >= 0]):
            places = np.flatnonzero(shards == shard)
            whole[places] = self._read_shard(self._paths[shard], self._rows[rows[places]], places, arrays)
        return arrays, whole

    def _read_shard(
        self, path: Path, rows: np.ndarray, places: np.ndarray, arrays: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """Put rows of a shard at these places of the arrays; which of them have the checksum they were written with."""
        whole = np.ones(len(rows), bool)
        try:
            with h5py.File(path, "r") as file:
                for name, array in arrays.items():
                    found = _rows_of(file[name], rows)
                    checks = _rows_of(file[f"{CHECKS}/{name}"], rows)
                    whole &= (checks_of(found, found.shape[1]) == checks).all(axis=1)
                    array[places] = found
        except UNREADABLE:
            whole[:] = False
        if not whole.all() and path not in self._damaged:
            self._damaged.add(path)
            say(f"{path} is damaged; what it does not hold whole is made again")
        return whole


def sparing(make: Make, kept: KeptRows, size: int) -> Make:
    """`make`, which is asked only for rows that are not kept, `size` at a time, whatever the batches are."""

    def make_rest(batches: Sequence[Sequence[int]]) -> Iterator[Arrays]:
        new = [row for batch in batches for row, is_kept in zip(batch, kept.holds(batch), strict=True) if not is_kept]
        made = _one_by_one(make([new[start : start + size] for start in range(0, len(new), size)]))
        for batch in batches:
            arrays, whole = kept.read(batch)
            planned = kept.holds(batch)
            for place in np.flatnonzero(~planned).tolist():
                _put(arrays, place, next(made))
            damaged = np.flatnonzero(planned & ~whole).tolist()
            if damaged:
                again = _one_by_one(make([[batch[place] for place in damaged]]))
                for place in damaged:
                    _put(arrays, place, next(again))
            yield arrays

    return make_rest if len(kept) else make


def _one_by_one(batches: Iterable[Arrays]) -> Iterator[Arrays]:
    for arrays in batches:
        for row in range(len(next(iter(arrays.values())))):
            yield {name: array[row] for name, array in arrays.items()}


def _put(arrays: Mapping[str, np.ndarray], place: int, row: Arrays) -> None:
    for name, values in row.items():
        arrays[name][place] = values


def _keys_of(path: Path, fields: Mapping[str, Field]) -> list[bytes]:
    """Keys of a shard's rows; none where it has none, holds other fields, or is damaged."""
    try:
        with h5py.File(path, "r") as file:
            keys = file[KEYS][:]
            if keys.ndim != 2 or keys.shape[1] != KEY_BYTES or keys.dtype != np.uint8:
                return []
            if any(misfit(file[name], len(keys), field) is not None for name, field in fields.items()):
                return []
            if any(file[f"{CHECKS}/{name}"].shape != (len(keys), field.shape[0]) for name, field in fields.items()):
                return []
    except UNREADABLE:
        return []
    return [key.tobytes() for key in keys]


def _rows_of(data: h5py.Dataset, rows: np.ndarray) -> np.ndarray:
    """Rows of a data set in any order; h5py reads them quickly in one piece, and gaps between few of them cost more."""
    first, last = int(rows.min()), int(rows.max())
    if last - first < 2 * len(rows):
        return np.ascontiguousarray(data[first : last + 1][rows - first])
    unique, inverse = np.unique(rows, return_inverse=True)
    return np.ascontiguousarray(data[unique][inverse])

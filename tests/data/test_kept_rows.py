"""Rows found again by their keys: the very bytes, in any order, and never one that is not what was written."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from sfd_cli.data.kept_rows import KEY_BYTES, KeptRows, row_keys, sparing, stored_keys
from sfd_cli.data.shards import StoreWriter, split, write_shards
from sfd_cli.data.store import Field, Store, shard_name

FIELDS = {"texture": Field((2, 3, 2, 2)), "tokens": Field((2, 4, 5))}
RECIPE, OTHER_RECIPE = "ab" * 32, "cd" * 32


def values(content: int) -> dict[str, np.ndarray]:
    """What a network would make of a content."""
    rng = np.random.default_rng(content)
    return {name: rng.normal(size=field.shape).astype(np.float16) for name, field in FIELDS.items()}


class Maker:
    """Makes rows of these contents, and notes which it was asked for, and how many at a time."""

    def __init__(self, contents: Sequence[int]) -> None:
        self.contents = contents
        self.asked: list[list[int]] = []

    def __call__(self, batches: Sequence[Sequence[int]]) -> Iterator[dict[str, np.ndarray]]:
        for batch in batches:
            self.asked.append([self.contents[row] for row in batch])
            made = [values(self.contents[row]) for row in batch]
            yield {name: np.stack([row[name] for row in made]) for name in FIELDS}


def keys_of(contents: Sequence[int], recipe: str = RECIPE) -> list[bytes]:
    return row_keys(recipe, [content.to_bytes(4, "little") for content in contents])


def write(
    folder: Path, contents: Sequence[int], shard_size: int = 5, batch: int = 3, earlier: Sequence[Path] = ()
) -> Maker:
    folder.mkdir()
    keys, maker = keys_of(contents), Maker(contents)
    writer = StoreWriter(folder, FIELDS, len(contents), shard_size, "f", keys=keys)
    make = sparing(maker, KeptRows(earlier, FIELDS, keys), batch)
    write_shards(writer, lambda rows: split(rows, batch), make, doing="test", streams=("texture",))
    writer.finish([0] * len(contents), ["x"] * len(contents), range(len(contents)), ["a"])
    return maker


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_keys_tell_recipes_and_rows_apart_and_lie_in_the_shards(tmp_path: Path) -> None:
    keys = [*keys_of(range(50)), *keys_of(range(50), OTHER_RECIPE)]
    assert len(set(keys)) == 100
    assert {len(key) for key in keys} == {KEY_BYTES}
    write(tmp_path / "store", range(12))
    assert stored_keys(tmp_path / "store", FIELDS) == keys[:12]
    with h5py.File(tmp_path / "store" / shard_name(1)) as shard:
        assert shard["extras/keys"][2].tobytes() == keys[7]


def test_the_key_is_the_one_that_stores_have_been_written_with() -> None:
    assert row_keys(RECIPE, [b"row"])[0].hex() == "ed23173402e98fe26d5680f4988d7504"


@pytest.mark.parametrize("seed", range(6))
def test_any_rows_in_any_order_and_cut_are_the_bytes_of_a_store_from_nothing(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    old, older = (rng.choice(40, 17, replace=False).tolist() for _ in range(2))
    new = rng.choice(40, 23, replace=True).tolist()  # some of them twice
    for name, contents in {"old": old, "older": older}.items():
        write(tmp_path / name, contents, shard_size=int(rng.integers(3, 9)))
    maker = write(tmp_path / "new", new, 7, 4, [tmp_path / "old", tmp_path / "older"])
    assert sorted(itertools.chain.from_iterable(maker.asked)) == sorted(
        content for content in new if content not in {*old, *older}
    )
    assert {len(batch) for batch in maker.asked[:-1]} <= {4}
    write(tmp_path / "nothing", new, 7, 4)
    assert contents_of(tmp_path / "new") == contents_of(tmp_path / "nothing")
    store = Store(tmp_path / "new")
    for name in FIELDS:
        assert np.array_equal(store.read(name, range(23)), np.stack([values(content)[name] for content in new]))


def test_nothing_is_found_in_stores_of_other_recipes_fields_or_without_keys(tmp_path: Path) -> None:
    write(tmp_path / "store", range(6))
    other = FIELDS | {"tokens": Field((2, 4, 6))}
    single = {"texture": Field((2, 3, 2, 2), "float32")}
    assert len(KeptRows([tmp_path / "store"], FIELDS, keys_of(range(6)))) == 6
    assert len(KeptRows([tmp_path / "store"], FIELDS, keys_of(range(6), OTHER_RECIPE))) == 0
    for fields in (other, single, {"more": Field((2, 3))}):
        assert len(KeptRows([tmp_path / "store"], fields, keys_of(range(6)))) == 0
    assert len(KeptRows([tmp_path / "gone", tmp_path], FIELDS, keys_of(range(6)))) == 0
    with h5py.File(tmp_path / "store" / shard_name(0), "r+") as shard:
        del shard["extras/keys"]
    assert len(KeptRows([tmp_path / "store"], FIELDS, keys_of(range(6)))) == 1
    with h5py.File(tmp_path / "store" / shard_name(0), "r+") as shard:
        shard["extras/keys"] = np.zeros((5, 3), np.uint8)
    assert stored_keys(tmp_path / "store", FIELDS) == keys_of([5])


def test_rows_are_compared_with_their_checksums_when_they_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "old", range(10))
    with h5py.File(tmp_path / "old" / shard_name(0), "r+") as shard:
        shard["texture"][3, 1, 0, 0, 0] += 1
        shard["crc32/tokens"][1, 0] += 1
    kept = KeptRows([tmp_path / "old"], FIELDS, keys_of(range(12)))
    arrays, whole = kept.read([9, 3, 11, 2, 1, 4])
    assert whole.tolist() == [True, False, False, True, False, True]
    for place, content in ((0, 9), (3, 2), (5, 4)):
        assert np.array_equal(arrays["tokens"][place], values(content)["tokens"])
    kept.read([3])
    assert capsys.readouterr().err.count(f"{shard_name(0)} is damaged") == 1
    maker = write(tmp_path / "new", range(12), earlier=[tmp_path / "old"])
    assert sorted(itertools.chain.from_iterable(maker.asked)) == [1, 3, 10, 11]
    write(tmp_path / "nothing", range(12))
    assert contents_of(tmp_path / "new") == contents_of(tmp_path / "nothing")


def test_a_shard_that_is_lost_while_it_is_read_costs_its_rows_only(tmp_path: Path) -> None:
    write(tmp_path / "old", range(10))
    kept = KeptRows([tmp_path / "old"], FIELDS, keys_of(range(10)))
    (tmp_path / "old" / shard_name(1)).unlink()
    assert kept.read(range(10))[1].tolist() == [True] * 5 + [False] * 5
    assert kept.holds(range(10)).all()


def test_without_anything_kept_batches_go_through_as_they_are(tmp_path: Path) -> None:
    maker = Maker(range(4))
    assert sparing(maker, KeptRows([], FIELDS, keys_of(range(4))), 3) is maker

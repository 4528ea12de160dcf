"""Shards written together: what is there is kept, processes share the rest, and the bytes are the same."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sfd_cli import files
from sfd_cli.data.shards import StoreWriter, split, stream_statistics, write_shards
from sfd_cli.data.store import Field, Store, shard_name
from sfd_cli.errors import StageFailure

FIELDS = {"texture": Field((2, 3, 2, 2)), "semantic": Field((2, 1, 2, 2)), "tokens": Field((2, 4, 5))}
STREAMS = ("texture", "semantic")
COUNT, SHARD, BATCH = 23, 5, 2


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(2, 3, (COUNT, *field.shape)).astype(np.float16) for name, field in FIELDS.items()}


class Maker:
    """Gives arrays batch by batch, notes which batches were asked for, and may fail at one of them."""

    def __init__(self, arrays: dict[str, np.ndarray], fails_at: int | None = None) -> None:
        self.arrays, self.fails_at = arrays, fails_at
        self.asked: list[range] = []

    def __call__(self, batches: Sequence[range]) -> Iterator[dict[str, np.ndarray]]:
        for batch in batches:
            self.asked.append(batch)
            if self.fails_at in batch:
                raise RuntimeError("a network failed")
            yield {name: array[batch.start : batch.stop] for name, array in self.arrays.items()}


def write(folder: Path, maker: Maker, **options: Any) -> StoreWriter:
    folder.mkdir(exist_ok=True)
    writer = StoreWriter(folder, FIELDS, COUNT, SHARD, "f")
    write_shards(writer, lambda rows: split(rows, BATCH), maker, doing="test", streams=STREAMS, **options)
    return writer


def finish(writer: StoreWriter) -> dict[str, bytes]:
    statistics = stream_statistics(writer, STREAMS)
    writer.finish([0] * COUNT, ["x"] * COUNT, range(COUNT), ["a"], statistics)
    return {path.name: path.read_bytes() for path in writer.folder.iterdir()}


def test_a_range_is_split_into_pieces_with_the_rest_last() -> None:
    assert split(range(5, 10), 2) == [range(5, 7), range(7, 9), range(9, 10)]
    assert split(range(0), 2) == []


def test_a_stream_may_have_one_scale_for_all_its_channels(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    scaled = {"texture": arrays["texture"] * np.array([1, 4, 0.25], np.float16)[:, None, None]}
    maker = Maker(arrays | scaled)
    writer = write(tmp_path, maker)
    own, shared = stream_statistics(writer, STREAMS), stream_statistics(writer, STREAMS, ("texture",))
    texture = scaled["texture"].astype(np.float64)
    centred = texture - texture.mean(axis=(0, 1, 3, 4), keepdims=True)
    np.testing.assert_allclose(shared["std"][:3], [np.sqrt((centred**2).mean())] * 3, rtol=1e-12)
    assert shared["std"][3] == own["std"][3]
    np.testing.assert_array_equal(shared["mean"], own["mean"])


def test_batches_end_where_a_shard_ends_and_are_read_back(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    maker = Maker(arrays)
    finish(write(tmp_path, maker))
    whole = [[range(s, s + 2), range(s + 2, s + 4), range(s + 4, s + 5)] for s in (0, 5, 10, 15)]
    assert maker.asked == [*(batch for shard in whole for batch in shard), range(20, 22), range(22, 23)]
    for name, array in arrays.items():
        assert np.array_equal(Store(tmp_path).read(name, range(COUNT)), array)


def test_statistics_are_those_of_all_values_of_each_channel(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    statistics = stream_statistics(write(tmp_path, Maker(arrays)), STREAMS)
    composite = np.concatenate([arrays[name].astype(np.float64) for name in STREAMS], axis=2)
    np.testing.assert_allclose(statistics["mean"], composite.mean(axis=(0, 1, 3, 4)), rtol=1e-12)
    np.testing.assert_allclose(statistics["std"], composite.std(axis=(0, 1, 3, 4)), rtol=1e-12)


def test_what_fails_midway_goes_on_with_the_missing_shards_to_the_same_bytes(
    tmp_path: Path, arrays: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    unbroken = finish(write(tmp_path / "unbroken", Maker(arrays)))
    with pytest.raises(RuntimeError):
        write(tmp_path / "broken", Maker(arrays, fails_at=13))
    assert {path.name for path in (tmp_path / "broken").iterdir()} == {shard_name(0), shard_name(1)}
    (tmp_path / "broken" / shard_name(0)).unlink()
    maker = Maker(arrays)
    assert finish(write(tmp_path / "broken", maker)) == unbroken
    assert [batch.start // SHARD for batch in maker.asked] == [0, 0, 0, 2, 2, 2, 3, 3, 3, 4, 4]
    assert "1 of 5" in capsys.readouterr().err


@pytest.mark.parametrize("processes", [2, 3, 7])
def test_shares_are_disjoint_and_make_the_same_bytes_as_one(
    tmp_path: Path, arrays: dict[str, np.ndarray], processes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = finish(write(tmp_path / "alone", Maker(arrays)))
    makers = [Maker(arrays) for _ in range(processes)]
    for rank in reversed(range(processes)):
        writer = write(tmp_path / "shared", makers[rank], share=(rank, processes))
        assert {batch.start // SHARD % processes for batch in makers[rank].asked} <= {rank}
    assert finish(writer) == alone
    mine = len(range(0, 5, processes))
    capsys.readouterr()
    write(tmp_path / "shared", Maker(arrays), share=(0, processes))
    assert f"{mine} of {mine} shards" in capsys.readouterr().err
    assert sum(len(batch) for maker in makers for batch in maker.asked) == COUNT


def test_a_maker_that_gives_too_few_leaves_no_shard_behind(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    short = {name: array[:, :] for name, array in arrays.items()}
    tmp_path.mkdir(exist_ok=True)
    writer = StoreWriter(tmp_path, FIELDS, COUNT, SHARD, "f")
    with pytest.raises(ValueError, match="texture"):
        write_shards(writer, lambda rows: split(rows, BATCH)[:1], Maker(short), doing="test")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("processes", "idle"), [(5, None), (7, "2 of 7 processes")])
def test_processes_that_have_no_shard_to_make_are_told_of_once(
    processes: int, idle: str | None, tmp_path: Path, arrays: dict[str, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in range(processes):
        write(tmp_path, Maker(arrays), share=(rank, processes))
    said = capsys.readouterr().err
    assert said.count("have no shard") == (idle is not None)
    assert (idle or "") in said


def test_a_shard_of_another_machine_may_be_seen_late(
    tmp_path: Path, arrays: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where NFS keeps what it knows of a folder; here the shard comes when the folder is listed again."""
    writer = write(tmp_path / "store", Maker(arrays))
    hidden = (tmp_path / "store" / shard_name(3)).rename(tmp_path / "hidden")
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(files, "DIRECTORY_LAG", 0.1)
    with pytest.raises(StageFailure, match=r"\[3\]"):
        writer.require_shards(others=True)
    listdir, looks = os.listdir, []

    def late(folder: Path) -> list[str]:
        looks.append(folder)
        if len(looks) == 2:
            hidden.rename(tmp_path / "store" / shard_name(3))
        return listdir(folder)

    monkeypatch.setattr(files, "DIRECTORY_LAG", 60.0)
    monkeypatch.setattr(files.os, "listdir", late)
    with pytest.raises(StageFailure, match=r"\[3\]"):
        writer.require_shards()
    assert looks == []
    writer.require_shards(others=True)
    assert looks == [tmp_path / "store"] * 2

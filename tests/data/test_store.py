"""HDF5 stores: what is written is read back, whole or not at all."""

import errno
import gc
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refusal

from sfd_cli.data import store as store_module
from sfd_cli.data.prefetch import prefetched, threaded_map
from sfd_cli.data.shards import StoreWriter
from sfd_cli.data.store import Field, Store, is_readable, shard_name
from sfd_cli.errors import StageFailure

FIELDS = {"texture": Field((2, 3, 4, 4)), "tokens": Field((2, 5, 6))}


def arrays_of(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((count, *field.shape)).astype(field.dtype) for name, field in FIELDS.items()}


def write_store(folder: Path, arrays: dict[str, np.ndarray], shard_size: int, fingerprint: str = "f") -> StoreWriter:
    count = len(arrays["texture"])
    folder.mkdir(parents=True, exist_ok=True)
    writer = StoreWriter(folder, FIELDS, count, shard_size, fingerprint, {"grid": 4})
    for shard in range(writer.shard_count):
        rows = writer.rows(shard)
        writer.write_shard(shard, {name: array[rows.start : rows.stop] for name, array in arrays.items()})
    finish(writer)
    return writer


def finish(writer: StoreWriter) -> None:
    count = writer.count
    files = [f"ä/{index}.png" for index in range(count)]
    writer.finish(
        [index % 2 for index in range(count)], files, range(0, 3 * count, 3), ["ä", "b"], {"mean": np.ones(3)}
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    write_store(tmp_path / "store", arrays_of(23), shard_size=5)
    return Store(tmp_path / "store")


@settings(max_examples=25, deadline=None)
@given(data=st.data(), count=st.integers(1, 17), shard_size=st.integers(1, 20))
def test_any_batch_is_read_back_as_it_was_written(tmp_path_factory, data, count, shard_size):
    arrays = arrays_of(count)
    folder = tmp_path_factory.mktemp("store")
    write_store(folder, arrays, shard_size)
    store = Store(folder)
    indices = data.draw(st.lists(st.integers(0, count - 1), max_size=30))
    flips = data.draw(st.lists(st.integers(0, 1), min_size=len(indices), max_size=len(indices)))
    for name, array in arrays.items():
        assert np.array_equal(store.read(name, indices), array[np.array(indices, int)])
        picked = array[np.array(indices, int), np.array(flips, int)]
        assert np.array_equal(store.read(name, indices, np.array(flips)), picked)


def test_the_index_tells_labels_files_indices_classes_and_statistics(store):
    assert len(store) == 23
    assert store.fields == {name: Field(field.shape, "<f2") for name, field in FIELDS.items()}
    assert store.labels.tolist() == [index % 2 for index in range(23)]
    assert store.indices.tolist() == list(range(0, 69, 3))
    assert store.files[22] == "ä/22.png"
    assert store.classes == ["ä", "b"]
    assert store.statistics["mean"].tolist() == [1, 1, 1]
    assert (store.attributes, store.fingerprint) == ({"grid": 4}, "f")


def test_plain_h5py_sees_one_data_set_from_anywhere(store, tmp_path, monkeypatch):
    moved = tmp_path / "moved"
    store.folder.rename(moved)
    monkeypatch.chdir("/")
    with h5py.File(moved / "index.h5") as index:
        assert np.array_equal(index["texture"][:], arrays_of(23)["texture"])
        assert index["labels"][:4].tolist() == [0, 1, 0, 1]
        assert index["files"].asstr()[3] == "ä/3.png"


def test_a_batch_can_fill_an_array_of_the_callers(store):
    out = np.empty((3, 5, 6), np.float16)
    assert store.read("tokens", [1, 9, 4], [0, 1, 1], out=out) is out
    assert np.array_equal(out, arrays_of(23)["tokens"][[1, 9, 4], [0, 1, 1]])
    every_other = np.empty((6, 5, 6), np.float16)[::2]
    for wrong in (out[:2], out.astype(np.float32), every_other):
        with pytest.raises(ValueError, match="out"):
            store.read("tokens", [1, 9, 4], [0, 1, 1], out=wrong)


def test_positions_outside_the_store_are_refused(store):
    for outside in (-1, 23):
        with pytest.raises(IndexError, match=r"^positions"):
            store.read("texture", [0, outside])
    for outside in (-1, 2):
        with pytest.raises(IndexError, match=r"^flips"):
            store.read("texture", [0, 1], [0, outside])


def test_reading_opens_no_files(store, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("opened a file")

    monkeypatch.setattr(h5py, "File", refuse)
    monkeypatch.setattr("builtins.open", refuse)
    assert store.read("texture", [20, 1]).shape == (2, 2, 3, 4, 4)


def evict(store: Store) -> None:
    """Ask for the store's files to leave the page cache."""
    for path in store.folder.iterdir():
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def test_what_is_not_in_the_page_cache_is_read_from_the_disk(store):
    expected, order = arrays_of(23)["tokens"], [22, 0, 9, 9, 14]
    for _ in range(3):
        evict(store)
        assert np.array_equal(store.read("tokens", order), expected[order])


@pytest.mark.parametrize("cached", [0, 7, None])
def test_file_systems_that_cannot_tell_what_is_cached_or_hold_a_part_give_the_same_values(store, monkeypatch, cached):
    preadv = os.preadv

    asked = set()

    def answer(file, buffers, begin, flags=0):
        asked.add(flags)
        if flags and cached is None:
            raise OSError(errno.EOPNOTSUPP, "no such flag")
        if flags:
            return preadv(file, [buffers[0][:cached]], begin) if cached else 0
        return preadv(file, [buffers[0][:11]], begin)  # a disk may also give less than was asked for

    monkeypatch.setattr(os, "preadv", answer)
    order, flips = [22, 0, 9, 9, 14], [1, 0, 0, 1, 1]
    assert np.array_equal(store.read("tokens", order, flips), arrays_of(23)["tokens"][order, flips])
    assert asked == {os.RWF_NOWAIT, 0}


def test_a_shard_that_is_cut_short_while_it_is_open_is_named(store):
    assert store.read("tokens", [12]).any()
    os.truncate(store.folder / shard_name(2), 10)
    with refusal(store.folder / shard_name(2)):
        store.read("tokens", [12])


def test_memory_does_not_grow_with_what_has_been_read(tmp_path):
    fields = {"tokens": Field((2, 64, 512))}
    writer = StoreWriter(tmp_path, fields, 256, 128, "f")
    for shard in range(2):
        writer.write_shard(shard, {"tokens": np.ones((128, 2, 64, 512), np.float16)})
    writer.finish([0] * 256, ["x"] * 256, range(256), ["a"])
    store, out = Store(tmp_path), np.zeros((8, 64, 512), np.float16)
    store.read("tokens", range(8), [0] * 8, out=out)
    before = resident()
    for start in range(0, 256, 8):
        for flip in (0, 1):
            store.read("tokens", range(start, start + 8), [flip] * 8, out=out)
    assert resident() - before < 2**23, "of a store of 32 MiB"


def resident() -> int:
    """Memory of this process that is in use, bytes, mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_store_of_more_shards_than_a_shell_lets_files_be_open_raises_its_own_limit(tmp_path):
    writer = StoreWriter(tmp_path, FIELDS, 40, 1, "f")
    for shard in range(40):
        writer.write_shard(shard, arrays_of(1, seed=shard))
    finish(writer)
    script = """
import resource, sys
from sfd_cli.data.store import Store
from sfd_cli.errors import UserError
resource.setrlimit(resource.RLIMIT_NOFILE, (30, int(sys.argv[2])))
try:
    print(Store(sys.argv[1]).read("texture", [39]).shape)
except UserError as error:
    print(error.subject, error.remedy)
"""
    answers = [
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path), str(hard)], capture_output=True, text=True, check=True
        ).stdout
        for hard in (1000, 35)
    ]
    assert answers[0] == "(1, 2, 3, 4, 4)\n"
    assert answers[1].startswith(f"{tmp_path} ")
    assert "ulimit -n" in answers[1]


NO_LIMIT = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("limits", "raised_to"),
    [
        ((100, 1000), [517]),
        ((516, NO_LIMIT), [517]),
        ((100, 300), [300]),
        ((517, 1000), []),
        ((NO_LIMIT, NO_LIMIT), []),
    ],
)
def test_a_store_asks_for_its_shards_and_512_files_to_spare(store, monkeypatch, limits, raised_to):
    asked = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda kind, both: asked.append((kind, both)))
    Store(store.folder)
    assert asked == [(resource.RLIMIT_NOFILE, (soft, limits[1])) for soft in raised_to]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"dtype": "float32"}, ("<f4", "<f2")),
        ({"dtype": ">f2"}, (">f2", "<f2")),
        ({"chunks": True}, ("chunks",)),
        ({"chunks": True, "compression": "gzip"}, ("gzip",)),
    ],
)
def test_a_shard_of_another_dtype_or_layout_is_refused_and_written_again(store, options, named):
    path = store.folder / shard_name(1)
    with h5py.File(path, "r+") as file:
        values = file["texture"][:]
        del file["texture"]
        file.create_dataset("texture", data=values, **options)
    with refusal(path, "texture", *named):
        Store(store.folder)
    assert StoreWriter(store.folder, FIELDS, 23, 5, "f").finished_shards() == {0, 2, 3, 4}


def test_a_store_closes_its_files_when_it_is_dropped_and_when_it_cannot_be_opened(store):
    before = open_shards(store.folder)
    second = Store(store.folder)
    assert len(open_shards(store.folder)) == len(before) + 5
    del second
    gc.collect()
    assert open_shards(store.folder) == before
    os.truncate(store.folder / shard_name(3), 500)
    with refusal(store.folder / shard_name(3)):
        Store(store.folder)
    gc.collect()
    assert open_shards(store.folder) == before


def open_shards(folder: Path) -> set[str]:
    """Descriptors of this process that are open on files of a store."""
    links = [link for link in Path("/proc/self/fd").iterdir() if link.exists()]
    return {f"{link.name} {os.readlink(link)}" for link in links if str(folder) in os.readlink(link)}


def test_whether_a_store_is_readable_is_told_with_the_reason(store, capsys):
    assert is_readable(store.folder)
    (store.folder / shard_name(2)).unlink()
    assert not is_readable(store.folder)
    assert shard_name(2) in capsys.readouterr().err


def test_a_store_can_be_shared_with_threads_and_processes(store):
    expected = arrays_of(23)["texture"]
    assert np.array_equal(pickle.loads(pickle.dumps(store)).read("texture", [22]), expected[[22]])
    with ThreadPoolExecutor(4) as pool:
        for index, batch in enumerate(pool.map(lambda index: store.read("texture", [index % 23]), range(100))):
            assert np.array_equal(batch[0], expected[index % 23])
    pipe, other = get_context("fork").Pipe()
    process = get_context("fork").Process(target=lambda: other.send(store.read("texture", [3, 19])))
    process.start()
    assert np.array_equal(pipe.recv(), expected[[3, 19]])
    process.join()


def test_equal_contents_make_equal_bytes(tmp_path):
    write_store(tmp_path / "one", arrays_of(7), 3)
    time.sleep(1.1)  # HDF5 can record times in seconds
    write_store(tmp_path / "two", arrays_of(7), 3)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_an_unfinished_store_is_not_opened(tmp_path):
    writer = StoreWriter(tmp_path, FIELDS, 4, 2, "f")
    writer.write_shard(0, arrays_of(2))
    with refusal(tmp_path, "index.h5"):
        Store(tmp_path)
    with refusal(tmp_path, "[1]", kind=StageFailure):
        finish(writer)


@pytest.mark.parametrize("lost", [1, 1000, 0.5])
def test_a_truncated_shard_is_named(store, lost):
    path = store.folder / shard_name(2)
    size = path.stat().st_size
    os.truncate(path, size - lost if isinstance(lost, int) else int(size * lost))
    with refusal(path):
        Store(store.folder)


def test_a_missing_shard_is_named(store):
    (store.folder / shard_name(4)).unlink()
    with refusal(store.folder / shard_name(4)):
        Store(store.folder)


def test_a_shard_of_other_settings_is_refused(store, tmp_path):
    write_store(tmp_path / "other", arrays_of(23, seed=1), 5, fingerprint="g")
    (tmp_path / "other" / shard_name(3)).replace(store.folder / shard_name(3))
    with refusal(store.folder / shard_name(3), store.folder / "index.h5"):
        Store(store.folder)


def test_a_shard_of_another_length_is_refused(store, tmp_path):
    write_store(tmp_path / "other", arrays_of(23), 4)
    (tmp_path / "other" / shard_name(0)).replace(store.folder / shard_name(0))
    with refusal(store.folder / shard_name(0), "(4, 2, 3, 4, 4)", "(5, 2, 3, 4, 4)"):
        Store(store.folder)


def test_a_damaged_index_is_named(store):
    os.truncate(store.folder / "index.h5", 100)
    with refusal(store.folder / "index.h5"):
        Store(store.folder)


def test_only_whole_shards_of_these_settings_count_as_finished(store):
    writer = StoreWriter(store.folder, FIELDS, 23, 5, "f")
    assert writer.finished_shards() == {0, 1, 2, 3, 4}
    os.truncate(store.folder / shard_name(1), 500)
    (store.folder / shard_name(2)).unlink()
    assert writer.finished_shards() == {0, 3, 4}
    assert writer.finished_shards([0, 1, 4]) == {0, 4}
    assert StoreWriter(store.folder, FIELDS, 23, 5, "g").finished_shards() == set()
    assert StoreWriter(store.folder, FIELDS, 24, 5, "f").finished_shards() == {0, 3}


def test_a_shard_that_fails_midway_leaves_nothing_behind(tmp_path):
    writer = StoreWriter(tmp_path, FIELDS, 4, 4, "f")
    with pytest.raises(ValueError, match="texture"), writer.shard(0) as shard:
        shard.write(0, arrays_of(5))
    with pytest.raises(ValueError, match="texture"), writer.shard(0) as shard:
        shard.write(0, arrays_of(2))
    with pytest.raises(ValueError, match="texture"), writer.shard(0) as shard:
        shard.write(3, arrays_of(2))
    assert list(tmp_path.iterdir()) == []


def test_a_shard_keeps_small_arrays_beside_the_images(tmp_path):
    writer = StoreWriter(tmp_path, FIELDS, 2, 2, "f")
    with writer.shard(0) as shard:
        shard.write(0, arrays_of(2))
        shard.keep("moments", np.arange(3.0))
    assert writer.extra(0, "moments").tolist() == [0, 1, 2]
    with h5py.File(tmp_path / shard_name(0)) as file:
        assert file["extras/moments"][:].tolist() == [0, 1, 2], "where stores of before have them"


def test_leftovers_of_a_dead_writer_are_deleted_and_nothing_else(store):
    before = sorted(store.folder.iterdir())
    for name in (".shard-00001.h5.k1ll3d.tmp", ".index.h5.k1ll3d.tmp"):
        (store.folder / name).write_bytes(b"half")
    kept = [store.folder / ".other", store.folder / "notes.tmp"]
    for path in kept:
        path.touch()
    StoreWriter(store.folder, FIELDS, 23, 5, "f").remove_leftovers()
    assert sorted(store.folder.iterdir()) == sorted([*before, *kept])


def test_large_arrays_begin_at_a_page_and_small_ones_lie_close(tmp_path):
    for count, folder in ((40, tmp_path / "large"), (1, tmp_path / "small")):
        write_store(folder, arrays_of(count), count)
    with h5py.File(tmp_path / "large" / shard_name(0)) as file:
        assert [file[name].id.get_offset() % 4096 for name in FIELDS] == [0, 0]
    with h5py.File(tmp_path / "small" / shard_name(0)) as file:
        assert 0 not in [file[name].id.get_offset() % 4096 for name in FIELDS]


def test_labels_and_indices_are_int64_whatever_they_came_as(tmp_path):
    writer = StoreWriter(tmp_path, FIELDS, 2, 2, "f")
    writer.write_shard(0, arrays_of(2))
    writer.finish(np.array([1, 0], np.int32), ["a", "b"], np.array([5, 6], np.int16), ["a", "b"])
    with h5py.File(tmp_path / "index.h5") as index:
        assert (index["labels"].dtype, index["indices"].dtype) == (np.int64, np.int64)
    assert Store(tmp_path).statistics == {}


def test_texts_are_utf8_as_long_as_the_longest(tmp_path):
    writer = StoreWriter(tmp_path, FIELDS, 2, 2, "f")
    writer.write_shard(0, arrays_of(2))
    writer.finish([0, 0], ["a", "äöü"], [0, 1], [])
    with h5py.File(tmp_path / "index.h5") as index:
        kinds = [h5py.check_string_dtype(index[name].dtype) for name in ("files", "classes")]
    assert [(kind.encoding, kind.length) for kind in kinds] == [("utf-8", 6), ("utf-8", 1)]
    store = Store(tmp_path)
    assert (store.files, store.classes) == (["a", "äöü"], [])


def test_facts_make_the_same_bytes_in_any_order(tmp_path):
    indexes = []
    for names in (["b", "a"], ["a", "b"]):
        writer = StoreWriter(tmp_path, FIELDS, 2, 2, "f", dict.fromkeys(names, 1))
        writer.write_shard(0, arrays_of(2))
        finish(writer)
        indexes.append((tmp_path / "index.h5").read_bytes())
    assert indexes[0] == indexes[1]


KILLED = """
import sys, time
sys.path[:0] = {tests!r}
from test_store import *
writer = StoreWriter(Path({folder!r}), FIELDS, 23, 5, "f", {{"grid": 4}})
arrays = arrays_of(23)
for shard in range(writer.shard_count):
    rows = writer.rows(shard)
    with writer.shard(shard) as file:
        for row in rows:
            if row == 13:
                print("now", flush=True)
                time.sleep(60)
            file.write(row - rows.start, {{name: array[row : row + 1] for name, array in arrays.items()}})
"""


def test_a_writer_killed_inside_a_shard_is_resumed_to_the_same_bytes(tmp_path):
    folder = tmp_path / "killed"
    folder.mkdir()
    script = KILLED.format(tests=[str(Path(__file__).parent), str(Path(__file__).parents[1])], folder=str(folder))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "now\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    arrays = arrays_of(23)
    writer = StoreWriter(folder, FIELDS, 23, 5, "f", {"grid": 4})
    assert writer.finished_shards() == {0, 1}
    assert any(path.name.endswith(".tmp") for path in folder.iterdir())
    writer.remove_leftovers()
    for shard in {2, 3, 4}:
        rows = writer.rows(shard)
        writer.write_shard(shard, {name: array[rows.start : rows.stop] for name, array in arrays.items()})
    finish(writer)
    write_store(tmp_path / "unbroken", arrays, 5)
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "unbroken").iterdir())
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes(), name


@pytest.mark.parametrize("depth", [1, 3, 50])
def test_prefetched_items_keep_their_order_and_errors_their_place(depth):
    def items():
        yield from range(10)
        raise RuntimeError("after ten")

    stream = prefetched(items(), depth)
    assert [next(stream) for _ in range(10)] == list(range(10))
    with pytest.raises(RuntimeError, match="after ten"):
        next(stream)
    assert list(prefetched(range(5), depth)) == [0, 1, 2, 3, 4]


def test_leaving_a_prefetched_stream_stops_its_source():
    made = []

    def items():
        for number in range(1000):
            made.append(number)
            yield number

    stream = prefetched(items(), 2)
    next(stream)
    stream.close()
    count = len(made)
    time.sleep(0.05)
    assert len(made) == count <= 4


@pytest.mark.parametrize("workers", [1, 4])
def test_a_threaded_map_keeps_the_order_and_takes_only_what_it_needs(workers):
    taken = []

    def numbers():
        for number in range(10_000):
            taken.append(number)
            yield number

    squares = threaded_map(lambda number: number**2, numbers(), workers, ahead=8)
    assert [next(squares) for _ in range(20)] == [number**2 for number in range(20)]
    squares.close()
    assert len(taken) <= 30
    assert list(threaded_map(str, range(100), workers, ahead=8)) == [str(number) for number in range(100)]


def test_a_store_says_how_many_views_it_has_and_one_of_images_as_they_are_has_one(store, tmp_path):
    assert store.flips == 2
    values = arrays_of(5)["texture"][:, :1]
    writer = StoreWriter(tmp_path / "one", {"texture": Field((1, 3, 4, 4))}, 5, 2, "f")
    (tmp_path / "one").mkdir()
    for shard in range(3):
        writer.write_shard(shard, {"texture": values[2 * shard : 2 * shard + 2]})
    finish(writer)
    one = Store(tmp_path / "one")
    assert one.flips == 1
    assert np.array_equal(one.read("texture", [4, 0, 3]), values[[4, 0, 3]])
    assert np.array_equal(one.read("texture", [4, 0, 3], [0, 0, 0]), values[[4, 0, 3], 0])
    with pytest.raises(IndexError, match=r"^flips"):
        one.read("texture", [4, 0], [0, 1])


def replace(index: h5py.File, name: str, **kept: object) -> None:
    del index[name]
    index.create_dataset(name, **kept)


@pytest.mark.parametrize(
    "damage",
    [
        lambda index: index.attrs.__setitem__("shard_size", 0),
        lambda index: index.attrs.__setitem__("shard_size", -1),
        lambda index: index.attrs.__setitem__("shard_size", "abc"),
        lambda index: index.attrs.__setitem__("attributes", "[1]"),
        lambda index: index.attrs.__setitem__("attributes", "{"),
        lambda index: index.attrs.__setitem__("attributes", "[" * 100_000),
        lambda index: replace(index, "labels", shape=(10**12,), dtype="int64", chunks=(1024,)),
        lambda index: replace(index, "labels", data=np.zeros((4, 4), np.int64)),
        lambda index: replace(index, "labels", data=np.full(10, 99)),
        lambda index: replace(index, "labels", data=np.zeros(0, np.int64)),
        lambda index: replace(index, "indices", data=np.zeros(3, np.int64)),
        lambda index: replace(index, "classes", data=np.arange(3)),
        lambda index: replace(index, "classes", data=np.array([b"\xff\xfe"])),
        lambda index: replace(index, "statistics/mean", data=np.full(3, np.nan)),
        lambda index: [index.__delitem__(name) for name in FIELDS],
    ],
)
def test_an_index_that_holds_something_else_is_named(store, damage):
    with h5py.File(store.folder / "index.h5", "r+") as index:
        damage(index)
    with refusal(store.folder / "index.h5"):
        Store(store.folder)


def damage_image(store: Store, position: int, field: str, flip: int) -> Path:
    """Flip a bit of one view of one image, behind HDF5's back and with the time of change as it was."""
    path = store.folder / shard_name(position // 5)
    before = path.stat()
    with h5py.File(path) as file:
        data = file[field]
        size = data.dtype.itemsize * int(np.prod(data.shape[2:]))
        place = data.id.get_offset() + (position % 5 * data.shape[1] + flip) * size + size // 2
    with open(path, "r+b") as raw:
        raw.seek(place)
        byte = raw.read(1)[0]
        raw.seek(place)
        raw.write(bytes([byte ^ 16]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return path


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("flip", [0, 1])
def test_one_wrong_bit_in_an_image_is_an_error_with_its_shard_when_it_is_read(store, field, flip):
    path = damage_image(store, 6, field, flip)
    damaged = Store(store.folder)
    everyone = np.arange(len(damaged))
    damaged.read(field, everyone, np.full(len(damaged), 1 - flip))  # the other view is whole
    damaged.read(field, everyone[everyone != 6], np.full(len(damaged) - 1, flip))
    for flips in (np.full(len(damaged), flip), None):
        with refusal(path, field, "image 6"):
            damaged.read(field, everyone, flips)


def test_what_was_found_whole_is_not_compared_again(store, monkeypatch):
    again = Store(store.folder)
    everyone = np.arange(len(again))
    again.read("texture", everyone, np.zeros(len(again), int))
    compared = []
    real = store_module.checks_of
    monkeypatch.setattr(store_module, "checks_of", lambda arrays, flips: compared.append(1) or real(arrays, flips))
    again.read("texture", everyone, np.zeros(len(again), int))
    assert compared == []
    again.read("texture", everyone)
    again.read("texture", everyone)
    assert compared == [1]


def test_shards_from_before_there_were_checks_are_read_as_they_are(store):
    expected = Store(store.folder).read("texture", range(10))
    for path in store.folder.glob("shard-*.h5"):
        with h5py.File(path, "r+") as file:
            del file["crc32"]
    assert np.array_equal(Store(store.folder).read("texture", range(10)), expected)


def test_the_checks_in_a_shard_are_crc_32_of_what_it_holds(store):
    with h5py.File(store.folder / shard_name(0)) as file:
        for name in FIELDS:
            for (row, flip), check in np.ndenumerate(file["crc32"][name]):
                assert check == zlib.crc32(file[name][row, flip].tobytes())

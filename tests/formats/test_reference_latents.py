"""The reference's latent shards as a store and back: the same files, whatever cuts them up or gets in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refusal
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfd_cli.data.shards import StoreWriter
from sfd_cli.data.store import Field, Store, shard_name
from sfd_cli.formats import reference_latents
from sfd_cli.formats.reference_latents import export_latents, import_latents, latents_fingerprint

SIDE = 3
METADATA = {"total_size": "7"}


def shard_of(
    count: int, seed: int = 0, features: bool = False, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def values(channels: int) -> Tensor:
        return torch.randn(count, channels, SIDE, SIDE, generator=generator)

    tensors = {name: values(4).to(dtype) for name in ("latents", "latents_flip")}
    tensors |= {name: values(2).to(dtype) for name in ("latents_sv", "latents_sv_flip")}
    tensors["labels"] = torch.randint(0, 5, (count,), generator=generator)
    if features:
        tensors |= {name: values(6).half() for name in ("feats_dino", "feats_dino_flip")}
    return tensors


def write_source(folder: Path, counts: list[int], features: bool = False, statistics: bool = False) -> Path:
    """Shards of two processes, as the reference names them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, count in enumerate(counts):
        name = f"latents_rank{number % 2:02d}_shard{number // 2:03d}.safetensors"
        save_file(shard_of(count, number, features), folder / name, METADATA)
    if statistics:
        for name, channels in (("latents_stats.pt", 4), ("latents_sv_stats.pt", 2)):
            mean, std = torch.randn(1, channels, 1, 1), torch.rand(1, channels, 1, 1) + 0.1
            torch.save({"mean": mean, "std": std}, folder / name)
    return folder


def run_import(source: Path, folder: Path, shard_size: int = 5, num_classes: int | None = None) -> int:
    return import_latents(
        source,
        folder,
        latents_fingerprint(source),
        encoder="dinov2_vitb14_reg",
        image_size=48,
        shard_size=shard_size,
        num_classes=num_classes,
    )


def rows_of(source: Path) -> dict[str, Tensor]:
    """All shards together, in the order of their names."""
    files = [load_file(path) for path in sorted(source.glob("*.safetensors"))]
    return {name: torch.cat([tensors[name] for tensors in files]) for name in files[0]}


def assert_same_folders(left: Path, right: Path) -> None:
    names = sorted(path.name for path in left.iterdir())
    assert names == sorted(path.name for path in right.iterdir())
    for name in names:
        read = load_file if name.endswith(".safetensors") else torch.load
        first, second = read(left / name), read(right / name)
        assert first.keys() == second.keys()
        for key, tensor in first.items():
            assert tensor.dtype == second[key].dtype
            assert torch.equal(tensor, second[key])


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    shard_size=st.integers(1, 20),
    at_once=st.integers(1, 8),
    features=st.booleans(),
    statistics=st.booleans(),
)
def test_any_shards_survive_both_ways(tmp_path_factory, counts, shard_size, at_once, features, statistics):
    folder = tmp_path_factory.mktemp("latents")
    source = write_source(folder / "source", counts, features, statistics)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_latents, "ROWS_AT_ONCE", at_once)
        assert run_import(source, folder / "store", shard_size) == sum(counts)
        assert export_latents(folder / "store", folder / "out") == len(counts)
    assert_same_folders(source, folder / "out")


def test_exported_shards_are_the_very_same_bytes(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", [7, 2], features=True)
    run_import(source, tmp_path / "store")
    export_latents(tmp_path / "store", tmp_path / "out")
    for path in source.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_the_store_is_one_that_training_reads(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", [7, 4], features=True)
    run_import(source, tmp_path / "store", num_classes=10)
    store, rows = Store(tmp_path / "store"), rows_of(source)
    everything = range(11)
    for field, names in (("texture", ("latents", "latents_flip")), ("semantic", ("latents_sv", "latents_sv_flip"))):
        expected = torch.stack([rows[name] for name in names], dim=1)
        assert np.array_equal(store.read(field, everything), expected.numpy())
    tokens = torch.stack([rows["feats_dino"], rows["feats_dino_flip"]], dim=1).flatten(3).transpose(2, 3)
    assert np.array_equal(store.read("features", everything), tokens.numpy())
    assert store.fields["features"] == Field((2, SIDE * SIDE, 6), np.dtype("float16").str)
    assert store.labels.dtype == np.int64
    assert store.labels.tolist() == rows["labels"].tolist()
    assert store.indices.tolist() == list(everything)
    assert store.classes == [str(number) for number in range(10)]
    assert store.files[6:8] == ["latents_rank00_shard000.safetensors#6", "latents_rank01_shard000.safetensors#0"]
    facts = {key: value for key, value in store.attributes.items() if key != reference_latents.ATTRIBUTE}
    assert facts == {
        "encoder": "dinov2_vitb14_reg",
        "grid": SIDE,
        "image_size": 48,
        "texture_channels": 4,
        "semantic_channels": 2,
    }


def test_the_number_of_classes_is_the_largest_label_and_one_unless_it_is_given(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", [30])
    run_import(source, tmp_path / "store")
    assert len(Store(tmp_path / "store").classes) == rows_of(source)["labels"].max() + 1
    with refusal(source / "latents_rank00_shard000.safetensors", "below 2"):
        run_import(source, tmp_path / "other", num_classes=2)
    assert not (tmp_path / "other").exists()


def test_statistics_beside_the_shards_are_the_stores(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", [7], statistics=True)
    run_import(source, tmp_path / "store")
    statistics = Store(tmp_path / "store").statistics
    for key in ("mean", "std"):
        parts = [torch.load(source / name)[key].flatten() for name in ("latents_stats.pt", "latents_sv_stats.pt")]
        assert np.array_equal(statistics[key], torch.cat(parts).double().numpy())


def test_without_them_statistics_are_those_of_both_flips(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", [7, 8, 3])
    run_import(source, tmp_path / "store", shard_size=4)
    rows = rows_of(source)
    latents = torch.cat([torch.cat([rows[f"{name}"], rows[f"{name}_flip"]]) for name in ("latents",)])
    semantic = torch.cat([rows["latents_sv"], rows["latents_sv_flip"]])
    both = torch.cat([latents, semantic], dim=1).double()
    statistics = Store(tmp_path / "store").statistics
    np.testing.assert_allclose(statistics["mean"], both.mean((0, 2, 3)), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(statistics["std"], both.std((0, 2, 3), unbiased=False), rtol=1e-12)


@pytest.mark.parametrize("name", ["latents_stats.pt", "latents_sv_stats.pt"])
def test_one_file_of_statistics_alone_is_refused(tmp_path: Path, name: str) -> None:
    source = write_source(tmp_path / "source", [7], statistics=True)
    (source / name).unlink()
    with refusal(source / name):
        run_import(source, tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_dtype_of_the_source_is_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    (tmp_path / "source").mkdir()
    tensors = shard_of(3, dtype=dtype)
    tensors["labels"] = tensors["labels"].int()
    save_file(tensors, tmp_path / "source" / "latents_rank00_shard000.safetensors")
    run_import(tmp_path / "source", tmp_path / "store")
    assert Store(tmp_path / "store").labels.dtype == np.int64
    export_latents(tmp_path / "store", tmp_path / "out")
    assert_same_folders(tmp_path / "source", tmp_path / "out")


def test_a_store_that_was_encoded_here_is_exported_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_latents, "SHARD_ROWS", 4)
    fields = {"texture": Field((2, 3, 2, 2)), "semantic": Field((2, 1, 2, 2))}
    writer = StoreWriter(tmp_path / "store", fields, 6, 6, "f")
    arrays = {name: np.random.default_rng(0).normal(size=(6, *field.shape)) for name, field in fields.items()}
    (tmp_path / "store").mkdir()
    writer.write_shard(0, {name: array.astype(np.float16) for name, array in arrays.items()})
    statistics = {"mean": np.arange(4.0), "std": np.ones(4)}
    writer.finish(range(6), [str(n) for n in range(6)], range(6), [str(n) for n in range(6)], statistics)
    assert export_latents(tmp_path / "store", tmp_path / "out") == 2
    rows = rows_of(tmp_path / "out")
    assert rows["latents_flip"].shape == (6, 3, 2, 2)
    assert np.array_equal(rows["latents"].numpy(), arrays["texture"][:, 0].astype(np.float16))
    assert torch.load(tmp_path / "out" / "latents_sv_stats.pt")["mean"].tolist() == [[[[3.0]]]]
    run_import(tmp_path / "out", tmp_path / "again")
    assert np.array_equal(Store(tmp_path / "again").statistics["mean"], statistics["mean"])


def test_an_export_overwrites_nothing(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", [3, 3])
    run_import(source, tmp_path / "store")
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    (source / "latents_rank00_shard000.safetensors").unlink()
    with refusal(source / "latents_rank01_shard000.safetensors"):
        export_latents(tmp_path / "store", source)
    assert [path.name for path in source.iterdir()] == ["latents_rank01_shard000.safetensors"]
    assert (source / "latents_rank01_shard000.safetensors").read_bytes() == before[
        "latents_rank01_shard000.safetensors"
    ]


def test_a_store_of_something_else_is_not_exported(tmp_path: Path) -> None:
    with refusal(tmp_path, "index.h5"):
        export_latents(tmp_path, tmp_path / "out")
    writer = StoreWriter(tmp_path / "store", {"tokens": Field((2, 3, 4))}, 1, 1, "f")
    (tmp_path / "store").mkdir()
    writer.write_shard(0, {"tokens": np.zeros((1, 2, 3, 4), np.float16)})
    writer.finish([0], ["a"], [0], ["a"])
    with refusal(tmp_path / "store"):
        export_latents(tmp_path / "store", tmp_path / "out")
    assert not (tmp_path / "out").exists()


CHANGES: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "a tensor missing": (
        lambda tensors: {name: tensor for name, tensor in tensors.items() if name != "latents_sv_flip"},
        "latents_sv_flip is missing",
    ),
    "labels missing": (
        lambda tensors: {name: tensor for name, tensor in tensors.items() if name != "labels"},
        "labels is missing",
    ),
    "half the features": (
        lambda tensors: tensors | {"feats_dino": torch.zeros(4, 6, SIDE, SIDE)},
        "feats_dino_flip is missing",
    ),
    "features in some": (
        lambda tensors: tensors | dict.fromkeys(("feats_dino", "feats_dino_flip"), torch.zeros(4, 6, SIDE, SIDE)),
        "feats_dino has the shape (6, 3, 3), but nothing in latents_rank00_shard000",
    ),
    "something unknown": (lambda tensors: tensors | {"feats_clip": torch.zeros(4)}, "feats_clip is unknown"),
    "other channels": (
        lambda tensors: tensors | dict.fromkeys(("latents", "latents_flip"), torch.zeros(4, 5, SIDE, SIDE)),
        "latents has the shape (5, 3, 3), but (4, 3, 3)",
    ),
    "other dtype": (
        lambda tensors: {name: tensor.half() if "latents" in name else tensor for name, tensor in tensors.items()},
        "the dtype F16, but F32",
    ),
    "bfloat16": (lambda tensors: tensors | {"latents": tensors["latents"].bfloat16()}, "BF16"),
    "other grid": (
        lambda tensors: tensors | dict.fromkeys(("latents_sv", "latents_sv_flip"), torch.zeros(4, 2, 2, 2)),
        "on one grid",
    ),
    "no square": (lambda tensors: tensors | {"latents": torch.zeros(4, 4, 3, 2)}, "(4, 3, 2)"),
    "flip of other channels": (
        lambda tensors: tensors | {"latents_flip": torch.zeros(4, 5, SIDE, SIDE)},
        "latents and latents_flip differ",
    ),
    "fewer labels": (lambda tensors: tensors | {"labels": torch.zeros(3, dtype=torch.int64)}, "a row for each label"),
    "one label": (lambda tensors: tensors | {"labels": torch.tensor(3)}, "a row for each label"),
    "no rows": (lambda tensors: {name: tensor[:0] for name, tensor in tensors.items()}, "a row for each label"),
    "labels of two axes": (lambda tensors: tensors | {"labels": torch.zeros(4, 1, dtype=torch.int64)}, "integers"),
    "labels that are floats": (lambda tensors: tensors | {"labels": torch.zeros(4)}, "integers"),
    "labels below zero": (lambda tensors: tensors | {"labels": tensors["labels"] - 9}, "labels from -9"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_bad_shard_is_named_and_nothing_is_written(tmp_path: Path, case: str) -> None:
    source = write_source(tmp_path / "source", [4, 4])
    change, words = CHANGES[case]
    bad = source / "latents_rank01_shard000.safetensors"
    changed = {name: tensor.clone() for name, tensor in change(load_file(bad)).items()}
    if case == "labels below zero":
        changed["labels"][0] = -9
    save_file(changed, bad)
    with refusal(bad, words):
        run_import(source, tmp_path / "store")
    assert not (tmp_path / "store").exists()


@settings(max_examples=25, deadline=None)
@given(part=st.floats(0, 1, exclude_max=True))
def test_a_shard_cut_anywhere_is_named(tmp_path_factory, part: float) -> None:
    source = write_source(tmp_path_factory.mktemp("cut") / "source", [4, 4])
    bad = source / "latents_rank01_shard000.safetensors"
    data = bad.read_bytes()
    bad.write_bytes(data[: int(part * len(data))])
    with refusal(bad, "truncated"):
        run_import(source, source.parent / "store")
    assert not (source.parent / "store").exists()


def test_latents_that_are_not_finite_are_named_with_their_row(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", [4, 4])
    bad = source / "latents_rank01_shard000.safetensors"
    tensors = load_file(bad)
    tensors["latents_sv_flip"][2, 0, 0, 0] = torch.nan
    save_file(tensors, bad)
    with refusal(bad, "latents_sv", "row 2"):
        run_import(source, tmp_path / "store", shard_size=3)
    with refusal(tmp_path / "store", "index.h5"):
        Store(tmp_path / "store")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"mean": torch.zeros(1, 3, 1, 1), "std": torch.ones(1, 3, 1, 1)}, "3 channels"),
        ({"mean": torch.zeros(2), "std": torch.ones(2)}, "(2,)"),
        ({"mean": torch.zeros(1, 2, 1, 1)}, "std is missing"),
    ],
)
def test_bad_statistics_are_named(tmp_path: Path, content: dict[str, Tensor], words: str) -> None:
    source = write_source(tmp_path / "source", [4], statistics=True)
    torch.save(content, source / "latents_sv_stats.pt")
    with refusal(source / "latents_sv_stats.pt", words):
        run_import(source, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with refusal(folder, "latents_rank*_shard*.safetensors"):
            run_import(folder, tmp_path / "store")


def test_the_fingerprint_tells_sources_apart(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", [4, 4], statistics=True)
    first = latents_fingerprint(source)
    assert latents_fingerprint(source) == first
    copied = tmp_path / "copied"
    copied.mkdir()
    for path in source.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    assert latents_fingerprint(copied) == first
    tensors = load_file(copied / "latents_rank01_shard000.safetensors")
    tensors["labels"][1] += 1
    save_file(tensors, copied / "latents_rank01_shard000.safetensors", METADATA)
    assert latents_fingerprint(copied) != first
    (source / "latents_stats.pt").unlink()
    assert latents_fingerprint(source) != first


IMPORTER = """
import sys, time
from pathlib import Path
from sfd_cli.formats import reference_latents
from sfd_cli.formats.reference_shards import SourceShard
reference_latents.ROWS_AT_ONCE = 2
read = SourceShard.arrays
def slow(*arguments):
    time.sleep(0.02)
    return read(*arguments)
SourceShard.arrays = slow
source, folder = map(Path, sys.argv[1:])
reference_latents.import_latents(
    source, folder, reference_latents.latents_fingerprint(source), encoder="dinov2_vitb14_reg", image_size=48,
    shard_size=5,
)
"""


def test_a_killed_import_goes_on_and_keeps_what_was_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_latents, "ROWS_AT_ONCE", 2)
    source, folder = write_source(tmp_path / "source", [13, 11, 16]), tmp_path / "store"
    process = subprocess.Popen([sys.executable, "-c", IMPORTER, str(source), str(folder)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (folder / shard_name(2)).exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*.h5")}
    assert 3 <= len(kept) < 8
    assert not (folder / "index.h5").exists()
    run_import(source, folder)
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept
    assert not list(folder.glob(".*"))
    run_import(source, tmp_path / "at_once")
    for path in (tmp_path / "at_once").iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes()


def test_memory_does_not_grow_with_the_shards(tmp_path: Path) -> None:
    """Python's and NumPy's own memory; what is mapped can be dropped by the system at any time."""
    peaks = []
    for count in (1_000, 4_000):
        source = write_source(tmp_path / f"source{count}", [count])
        tracemalloc.start()
        run_import(source, tmp_path / f"store{count}", shard_size=count)
        export_latents(tmp_path / f"store{count}", tmp_path / f"out{count}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    bytes_of_the_larger = 4_000 * 2 * 6 * SIDE * SIDE * 4
    assert peaks[1] < peaks[0] + bytes_of_the_larger / 2


def test_a_store_without_mirror_images_is_not_exported(tmp_path: Path) -> None:
    fields = {"texture": Field((1, 3, 2, 2)), "semantic": Field((1, 1, 2, 2))}
    writer = StoreWriter(tmp_path / "store", fields, 2, 2, "f")
    (tmp_path / "store").mkdir()
    writer.write_shard(0, {name: np.zeros((2, *field.shape), np.float16) for name, field in fields.items()})
    writer.finish([0, 0], ["a", "b"], [0, 1], ["a"], {"mean": np.zeros(4), "std": np.ones(4)})
    with refusal(tmp_path / "store", "images.mirror: true"):
        export_latents(tmp_path / "store", tmp_path / "out")
    assert not (tmp_path / "out").exists()

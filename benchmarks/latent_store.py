"""How fast are stored latents read in random order, and what do they ask of the memory?

Batches with flips, labels and normalisation, with and without the features for REPA: our HDF5 store against
safetensors shards that are opened for every sample. One process uses one core; W workers are W processes of torch's
DataLoader there and W threads here. Warm: from the page cache. Cold: the files are dropped from it before every turn.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from harness import Timing, arguments, interleaved, ratios, save, table
from plain_shards import Key, PlainShards, write_shard
from torch import Tensor
from torch.utils.data import DataLoader

from sfd_cli.data.order import EpochSampler
from sfd_cli.data.prefetch import threaded_map
from sfd_cli.data.shards import StoreWriter
from sfd_cli.data.store import Field, Store

STREAMS = {"texture": (32, 16, 16), "semantic": (16, 16, 16)}
FEATURES = {"features": (256, 768)}
CLASSES = 1000
IMAGENET = 1_281_167
Batch = tuple[Tensor, ...]
Indices = tuple[np.ndarray, np.ndarray]


def main() -> None:
    """Write both kinds of store, check that they give the same, time them, print, save."""
    options = parse()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    started = time.perf_counter()
    try:
        rows: list[dict[str, Any]] = []
        memory: list[dict[str, Any]] = []
        for features, count in ((False, options.images), (True, options.images_with_features)):
            stores = Stores(folder / ("with" if features else "without"), features, count, options)
            rows += timings(stores, options)
            memory += memory_of_an_epoch(stores, options)
            stores.remove()
    finally:
        shutil.rmtree(folder)
    print()
    table([{key: value for key, value in row.items() if key != "seconds"} for row in rows])
    print("\nAn epoch while at most the share 'allowed' of the store may stay in the page cache, MiB:\n")
    table(memory)
    sampler = sampler_costs(options.images_of_sampler, options.batch)
    print(f"\nThe order of {options.images_of_sampler:,} images, batches of {options.batch}:\n")
    table(sampler)
    print(f"\n{time.perf_counter() - started:.0f} s")
    save("latent_store", options, {"timings": rows, "memory": memory, "sampler": sampler})


def parse() -> argparse.Namespace:
    """Command line."""
    parser = arguments(__doc__)
    parser.set_defaults(repetitions=5)
    parser.add_argument("--images", type=int, default=4096, help="images of the store without features [4096]")
    parser.add_argument("--images-with-features", type=int, default=768, help="images of the other [768]")
    parser.add_argument("--batch", type=int, default=256, help="images of a batch [256]")
    parser.add_argument("--batches", type=int, default=4, help="batches of a turn [4]")
    parser.add_argument("--workers", type=int, default=2, help="workers beside the one process [2]")
    parser.add_argument("--images-of-sampler", type=int, default=IMAGENET, help="images to shuffle [ImageNet's]")
    parser.add_argument("--folder", type=Path, default=None, help="where to write the stores [the system's temporary]")
    return parser.parse_args()


class Stores:
    """The same random latents in every layout that is compared."""

    def __init__(self, folder: Path, features: bool, count: int, options: argparse.Namespace) -> None:
        self.folder, self.features, self.count, self.device = folder, features, count, torch.device(options.device)
        self.shard_size = max(count // 4, 1)
        shapes = STREAMS | (FEATURES if features else {})
        self.fields = {name: Field((2, *shape)) for name, shape in shapes.items()}
        self.labels = np.arange(count) % CLASSES
        for name in ("plain", "ours"):
            (folder / name).mkdir(parents=True)
        self._write()
        channels = sum(shape[0] for shape in STREAMS.values())
        self.mean = torch.linspace(-0.5, 0.5, channels)[:, None, None]
        self.std = torch.linspace(0.5, 1.5, channels)[:, None, None]

    def _write(self) -> None:
        rng = np.random.default_rng(0)
        writer = StoreWriter(self.folder / "ours", self.fields, self.count, self.shard_size, "f")
        for shard in range(writer.shard_count):
            rows = writer.rows(shard)
            arrays = {
                name: rng.standard_normal((len(rows), *field.shape), np.float32).astype(np.float16)
                for name, field in self.fields.items()
            }
            write_shard(
                self.folder / "plain" / f"shard-{shard:05d}.safetensors", arrays, self.labels[rows.start : rows.stop]
            )
            writer.write_shard(shard, arrays)
        writer.finish(self.labels, ["file"] * self.count, range(self.count), list(map(str, range(CLASSES))))
        os.sync()

    def drop(self) -> None:
        """Drop every file from the page cache, as far as nothing has it mapped."""
        for path in self.files():
            file = os.open(path, os.O_RDONLY)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)

    def files(self, layout: str = "*") -> list[Path]:
        """The shards of one layout, or of all."""
        return list(self.folder.glob(f"{layout}/shard-*"))

    def remove(self) -> None:
        """Delete all files."""
        shutil.rmtree(self.folder)


class Batches:
    """Ours: batches read into arrays that are used again and normalised at once.

    Args:
        stores: where they are.
        reuse: keep the arrays of a batch for the next.
    """

    def __init__(self, stores: Stores, reuse: bool = True) -> None:
        self.store = Store(stores.folder / "ours")
        self.device, self.reuse = stores.device, reuse
        self.mean, self.scale = stores.mean.to(self.device), (1 / stores.std).to(self.device)
        self.kept: dict[str, Tensor] = {}
        self.compare(False)

    def compare(self, is_first: bool) -> None:
        """Whether what is read next counts as read for the first time, and is compared with its CRC-32."""
        for unchecked in self.store._unchecked.values():
            unchecked[:] = is_first

    def read(self, indices: np.ndarray, flips: np.ndarray) -> Batch:
        """Latents (n, C, h, w) float32, labels (n,), and features (n, N, D) float16 if there are any."""
        raw = {name: self.fill(name, indices, flips).to(self.device) for name in self.store.fields}
        channels = [raw[name].shape[1] for name in STREAMS]
        size = (len(indices), sum(channels), *raw["texture"].shape[2:])
        latents = self.empty("latents", size, torch.float32, self.device)
        for part, name in zip(latents.split(channels, dim=1), STREAMS, strict=True):
            part.copy_(raw[name])
        latents.sub_(self.mean).mul_(self.scale)
        labels = torch.from_numpy(self.store.labels[indices]).to(self.device)
        return (latents, labels, *(raw[name] for name in FEATURES if name in raw))

    def read_raw(self, indices: np.ndarray, flips: np.ndarray) -> Batch:
        """Every field in float16 and the labels, as training takes them: the device casts and normalises."""
        raw = [self.fill(name, indices, flips).to(self.device) for name in self.store.fields]
        return (*raw, torch.from_numpy(self.store.labels[indices]).to(self.device))

    def fill(self, name: str, indices: np.ndarray, flips: np.ndarray) -> Tensor:
        """One field of a batch, as it is stored."""
        size = (len(indices), *self.store.fields[name].shape[1:])
        out = self.empty(name, size, torch.float16, torch.device("cpu"))
        self.store.read(name, indices, flips, out=out.numpy())
        return out

    def empty(self, name: str, size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor to fill: the one of the last batch, where they are kept."""
        if self.reuse and name in self.kept and self.kept[name].shape == size:
            return self.kept[name]
        pinned = self.device.type == "cuda" and device.type == "cpu"
        self.kept[name] = torch.empty(size, dtype=dtype, device=device, pin_memory=pinned)
        return self.kept[name]


class MappedBatches(Batches):
    """The same through memory maps, another idea that was tried."""

    def __init__(self, stores: Stores) -> None:
        super().__init__(stores)
        self.shard_size = stores.shard_size
        self.maps: list[mmap.mmap] = []
        self.views: list[dict[str, np.ndarray]] = []
        for path in sorted(stores.files("ours")):
            with h5py.File(path) as file, open(path, "rb") as raw:
                mapped = mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ)
                views = {
                    name: np.frombuffer(mapped, data.dtype, data.size, data.id.get_offset()).reshape(data.shape)
                    for name, data in ((name, file[name]) for name in stores.fields)
                }
            self.maps.append(mapped)
            self.views.append(views)

    def fill(self, name: str, indices: np.ndarray, flips: np.ndarray) -> Tensor:
        """One field of a batch, as it is stored."""
        size = (len(indices), *self.store.fields[name].shape[1:])
        out = self.empty(name, size, torch.float16, torch.device("cpu"))
        array, shards, rows = out.numpy(), *np.divmod(indices, self.shard_size)
        for place, (shard, row, flip) in enumerate(zip(shards.tolist(), rows.tolist(), flips.tolist(), strict=True)):
            array[place] = self.views[shard][name][row, flip]
        return out

    def unmap(self) -> None:
        """Let go of the pages, without which they cannot be dropped from the page cache."""
        for mapped in self.maps:
            mapped.madvise(mmap.MADV_DONTNEED)


class Plan(list[list[Key]]):
    """The batches of one turn, for the DataLoader; changed in place, so that its workers may stay."""

    def put(self, batches: list[Indices]) -> list[Indices]:
        """Take these batches next."""
        self[:] = [list(zip(*(part.tolist() for part in batch), strict=True)) for batch in batches]
        return batches


def timings(stores: Stores, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Microseconds per image of every reader, in turn, for one process and several, warm and cold."""
    mapped = MappedBatches(stores)
    rows = []
    for workers in dict.fromkeys((1, options.workers)):
        readers = Readers(stores, workers, options, mapped)
        readers.check()
        for state in ("warm", "cold"):

            def drop() -> None:
                mapped.unmap()
                stores.drop()

            before = drop if state == "cold" else None
            measured = interleaved(readers.candidates(), options.repetitions, 1, stores.device, before)
            rows += readers.rows(measured, state)
        readers.close()
    return rows


class Readers:
    """The candidates for one number of workers."""

    def __init__(self, stores: Stores, workers: int, options: argparse.Namespace, mapped: MappedBatches) -> None:
        self.stores, self.workers, self.batches = stores, workers, options.batches
        size = min(options.batch, stores.count)
        self.sampler = EpochSampler(stores.count, size, 0)
        self.step, self.plan = 0, Plan()
        data = PlainShards(stores.folder / "plain", stores.shard_size, stores.mean, stores.std, stores.features)
        several = {"num_workers": workers, "persistent_workers": True} if workers > 1 else {"num_workers": 0}
        self.loader: DataLoader[Batch] = DataLoader(
            data, batch_sampler=self.plan, pin_memory=stores.device.type == "cuda", **several
        )
        self.mapped = mapped
        self.ring = [Batches(stores) for _ in range(2 * workers + 2)]

    def candidates(self) -> dict[str, Callable[[], None]]:
        """Calls that read the next batches and let go of them, the baseline first."""
        calls: dict[str, Callable[[], Iterator[Batch]]] = {"shards opened per sample": self.baseline}
        if self.workers > 1:
            calls["store"] = self.threaded
        else:
            calls["store"] = lambda: self.serial(self.ring[0])
            calls["store, float16 as training takes it"] = lambda: self.raw(self.ring[0])
            calls["store, compared as in a first epoch"] = lambda: self.compared(self.ring[0])
            calls["store, new arrays"] = lambda: self.serial(Batches(self.stores, reuse=False))
            calls["store, memory-mapped"] = lambda: self.serial(self.mapped)
        return {name: lambda call=call: consume(call()) for name, call in calls.items()}

    def turn(self) -> list[Indices]:
        """The next batches in random order."""
        self.step += self.batches
        return [self.sampler.batch(step) for step in range(self.step - self.batches, self.step)]

    def baseline(self) -> Iterator[Batch]:
        """Batches of torch's DataLoader."""
        self.plan.put(self.turn())
        for batch in self.loader:
            yield tuple(tensor.to(self.stores.device) for tensor in batch)

    def serial(self, reader: Batches) -> Iterator[Batch]:
        """Batches of ours, one after the other."""
        return (reader.read(*batch) for batch in self.turn())

    def raw(self, reader: Batches) -> Iterator[Batch]:
        """Batches of ours as training takes them."""
        return (reader.read_raw(*batch) for batch in self.turn())

    def compared(self, reader: Batches) -> Iterator[Batch]:
        """Batches of ours, every image compared with its CRC-32, as it is when it is read for the first time."""
        reader.compare(True)
        yield from self.serial(reader)
        reader.compare(False)

    def threaded(self) -> Iterator[Batch]:
        """Batches of ours by several threads; a reader's arrays come up again when its batch has been used."""
        numbered = ((self.ring[number % len(self.ring)], batch) for number, batch in enumerate(self.turn()))
        return threaded_map(lambda pair: pair[0].read(*pair[1]), numbered, self.workers, ahead=2 * self.workers)

    def check(self) -> None:
        """All give the same values."""
        turn, plain = self.turn(), list(self.again(self.baseline))
        readers = [Batches(self.stores), Batches(self.stores, reuse=False), self.mapped]
        for indices, expected in zip(turn, plain, strict=True):
            for reader in readers:
                require_equal(expected, reader.read(*indices))
        for expected, got in zip(plain, self.again(self.threaded), strict=True):
            require_equal(expected, got)
        word = "features, " if self.stores.features else ""
        print(f"same latents, {word}labels and flips: {self.workers} worker(s), {self.batches} batches", flush=True)

    def again(self, call: Callable[[], Iterator[Batch]]) -> Iterator[Batch]:
        """What a call gives for the batches that were handed out last."""
        self.step -= self.batches
        return call()

    def rows(self, measured: dict[str, Timing], state: str) -> list[dict[str, Any]]:
        """A row for every candidate."""
        rows, baseline = [], None
        for name, timing in measured.items():
            images = self.sampler.batch_size * self.batches
            each = Timing(name, [seconds / images for seconds in timing.seconds])
            baseline = baseline or each
            ratio = ratios(baseline, each)
            rows.append(
                {
                    "features": "yes" if self.stores.features else "no",
                    "workers": self.workers,
                    "state": state,
                    "reader": name,
                    "us/image": each.median * 1e6,
                    "images/s": 1 / each.median,
                    "times": ratio["median"],
                    "quartiles": f"{ratio['low']:.3g}-{ratio['high']:.3g}",
                    "seconds": timing.seconds,
                }
            )
        return rows

    def close(self) -> None:
        """End the worker processes."""
        del self.loader


def consume(batches: Iterator[Batch]) -> None:
    """Take all and keep none."""
    for batch in batches:
        del batch


def require_equal(plain: Batch, ours: Batch) -> None:
    """Raise AssertionError where two readers differ; the plain one keeps features as (D, h, w)."""
    torch.testing.assert_close(ours[0], plain[0], rtol=1e-6, atol=1e-6)
    assert torch.equal(ours[1], plain[1])
    assert len(ours) == len(plain)
    for mine, other in zip(ours[2:], plain[2:], strict=True):
        assert torch.equal(mine, other.flatten(2).transpose(1, 2))


def memory_of_an_epoch(stores: Stores, options: argparse.Namespace) -> list[dict[str, Any]]:
    """How the memory of this process grows in an epoch while the page cache may hold a quarter of the store."""
    size = min(options.batch, stores.count) // 4 or 1
    files = stores.files("ours")
    total = sum(path.stat().st_size for path in files)
    allowed = total // 4
    rows = []
    readers = {"store": Batches(stores), "store, memory-mapped": MappedBatches(stores)}
    for name, reader in readers.items():
        sampler = EpochSampler(stores.count, size, 0)
        stores.drop()
        reader.read(*sampler.batch(0))
        start, peak, cached, read = resident(), resident(), 0, 0
        for step in range(1, stores.count // size):
            batch = reader.read(*sampler.batch(step))
            read += sum(tensor.nbytes for tensor in batch)
            peak = {kind: max(peak[kind], value) for kind, value in resident().items()}
            if read > allowed // 2:
                cached, read = max(cached, in_page_cache(files)), 0
                stores.drop()
        if isinstance(reader, MappedBatches):
            reader.unmap()
        rows.append(
            {
                "features": "yes" if stores.features else "no",
                "reader": name,
                "store": total / 2**20,
                "allowed": allowed / 2**20,
                "cached at most": cached / 2**20,
                "growth, own": (peak["RssAnon"] - start["RssAnon"]) / 2**20,
                "growth, files": (peak["RssFile"] - start["RssFile"]) / 2**20,
            }
        )
    return rows


def resident() -> dict[str, int]:
    """Resident memory of this process, bytes: its own, and pages of files."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {line[0][:-1]: int(line[1]) * 1024 for line in lines if line[0] in ("RssAnon:", "RssFile:")}


def in_page_cache(files: list[Path]) -> int:
    """Bytes of the files that the page cache holds."""
    pages = 0
    library = ctypes.CDLL(None)
    for path in files:
        view = np.memmap(path, np.uint8, "r")
        answer = np.zeros(-(-view.size // mmap.PAGESIZE), np.uint8)
        library.mincore(
            ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(view.size), ctypes.c_void_p(answer.ctypes.data)
        )
        pages += int((answer & 1).sum())
    return pages * mmap.PAGESIZE


def sampler_costs(count: int, batch: int, ranks: int = 8) -> list[dict[str, Any]]:
    """What the order of the images costs: by batch over an epoch, at a restart, and cut for a process of several."""
    started = time.perf_counter()
    sampler = EpochSampler(count, batch, 0)
    sampler.batch(0)
    first = time.perf_counter() - started
    steps = -(-count // batch)
    seconds = []
    share = batch // ranks or 1
    for step in range(steps, 2 * steps):
        started = time.perf_counter()
        indices, flips = sampler.batch(step)
        _ = indices[share : 2 * share], flips[share : 2 * share]
        seconds.append(time.perf_counter() - started)
    started = time.perf_counter()
    EpochSampler(count, batch, 0).batch(7 * steps + steps // 2)
    restart = time.perf_counter() - started
    spread = np.percentile(seconds, [25, 50, 75, 100])
    return [
        {"what": "a batch cut for one of 8 processes, median, us", "value": float(spread[1] * 1e6)},
        {"what": "the same, mean over an epoch with its shuffle, us", "value": float(np.mean(seconds) * 1e6)},
        {"what": "the batch that shuffles a new epoch, ms", "value": float(spread[3] * 1e3)},
        {"what": "a sampler made and its first batch, ms", "value": first * 1e3},
        {"what": "a restart in the middle of epoch 7, ms", "value": restart * 1e3},
    ]


if __name__ == "__main__":
    main()

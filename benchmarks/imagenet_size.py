"""What 1.28 million images cost before anything is computed: index, order, manifest, checks, DVC, memory of processes.

    python benchmarks/imagenet_size.py --folder /tmp/imagenet-size      # two minutes; made once, then found there

Latents of the preset's shape at a hundredth, a tenth and the whole of ImageNet, in shards of 1,024 images (the
default: 13, 126 and 1,252 of them), as sparse files (`size_stand_ins.py`). Real: opening, indexing, ordering, listing,
checking by size and time, and all of it as the stages do it. Extrapolated: reading all bytes for their checksums
beyond `--read` of them, and DVC, which takes the real number of files but tiny ones; its seconds a byte are taken
from real shards. Linux only.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
from harness import arguments, save, table
from size_stand_ins import StandIn, copy_with_holes, stand_in

from sfd_cli.artifacts.fingerprints import finished
from sfd_cli.artifacts.sample_folder import Samples
from sfd_cli.artifacts.verification import verify
from sfd_cli.data.contents import read_contents
from sfd_cli.data.images import ImageManifest, list_image_folder
from sfd_cli.data.kept_rows import row_keys, stored_keys
from sfd_cli.data.order import EpochSampler
from sfd_cli.data.store import Store, shard_name

BATCH = 256
mp = multiprocessing.get_context("fork")
# Shards of full size in which DVC's seconds a byte are measured.
SHARDS_FOR_DVC = 4


def load_manifest(made: StandIn) -> None:
    """Every stage that reads images does this."""
    ImageManifest.load(made.images)


def check_contents(made: StandIn) -> None:
    """extract-features and encode-latents: hashes by which images are known again, compared with the manifest."""
    read_contents(made.images, ImageManifest.load(made.images))


def make_keys(made: StandIn) -> None:
    """encode-latents: keys of all rows."""
    row_keys("0" * 64, (bytes(32) for _ in range(made.count)))


def list_tree(made: StandIn) -> None:
    """prepare-data: find all images of a folder."""
    assert len(list_image_folder(made.tree)) == made.count


def write_index(made: StandIn) -> None:
    """encode-latents at its end."""
    made.finish()


def keys_of_shards(made: StandIn) -> None:
    """encode-latents beside an earlier store."""
    assert len(stored_keys(made.latents, Store(made.latents).fields)) == made.count


def open_store(made: StandIn) -> None:
    """train, train-guide and all that read latents."""
    Store(made.latents)


def order_and_first_batch(made: StandIn) -> None:
    """train: the order of the first epoch."""
    EpochSampler(made.count, BATCH, 0).batch(0)


def check_latents(made: StandIn) -> None:
    """Every stage that reads latents: the record, and a look at every file."""
    finished(made.latents, "sfd encode-latents")


def check_samples(made: StandIn) -> None:
    """Fid, memorisation and report: the record of the samples, and a look at every file."""
    assert len(Samples.open(made.samples).files) == made.sampled


def verify_latents(made: StandIn) -> None:
    """`sfd verify`, and a stage whose input was copied or checked out since: every byte is read."""
    told, is_damaged = verify(made.latents)
    assert not is_damaged, told


MEASURED: dict[str, Callable[[StandIn], None]] = {
    "manifest, load": load_manifest,
    "hashes of contents, load and compare with the manifest": check_contents,
    "keys of rows, make": make_keys,
    "tree of images, list": list_tree,
    "index over all shards, write": write_index,
    "keys of rows, read from all shards": keys_of_shards,
    "store, open": open_store,
    "order of an epoch and first batch": order_and_first_batch,
    "latents at the start of a stage, record and a look at every file": check_latents,
    "samples at the start of a stage, record and a look at every file": check_samples,
}
VERIFY = "latents, every byte (sfd verify)"


def main() -> None:
    """Measure at every size, print and save."""
    parser = arguments(__doc__, timed=False)
    parser.add_argument("--folder", type=Path, help="where the stand-ins are made and kept [a temporary one]")
    parser.add_argument("--images", type=int, nargs="+", default=[12_812, 128_117, 1_281_167], help="[%(default)s]")
    parser.add_argument("--shard-size", type=int, default=1024, help="images of a shard [%(default)s]")
    parser.add_argument(
        "--repetitions", type=int, default=3, help="runs of each, the quickest of which counts [%(default)s]"
    )
    parser.add_argument("--read", type=float, default=7e9, help="most bytes that are read for checksums [%(default)g]")
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 4], help="that train at once [%(default)s]")
    parser.add_argument("--no-dvc", dest="dvc", action="store_false", help="leave DVC out")
    options = parser.parse_args()
    found: dict[str, Any] = {"stand_ins": [], "rows": [], "processes": [], "imported, MB": memory("status")["VmRSS"]}
    with tempfile.TemporaryDirectory() as temporary:
        for count in options.images:
            made = stand_in(options.folder or Path(temporary), count, options.shard_size)
            found["stand_ins"].append(about(made))
            found["rows"] += starts(made, options) + (dvc(made, Path(temporary) / str(count)) if options.dvc else [])
            found["processes"] += [training(made, number) for number in options.processes]
            if options.dvc and "dvc_seconds_a_byte" not in found:
                found["dvc_seconds_a_byte"] = dvc_by_bytes(made, Path(temporary) / "bytes")
    found["growth"] = growth(found["rows"], options.images)
    for name in ("stand_ins", "growth", "processes"):
        print()
        table(found[name])
    options.folder = None  # where they lie is this machine's matter
    save("imagenet_size", options, found)


def about(made: StandIn) -> dict[str, Any]:
    """How large a stand-in is, and what it takes of the disk."""
    files = list(made.latents.iterdir())
    return {
        "images": made.count,
        "shards": len(list(made.latents.glob("shard-*.h5"))),
        "latents, GB": made.bytes / 1e9,
        "on the disk, GB": sum(path.stat().st_blocks * 512 for path in files) / 1e9,
        "manifest, MB": (made.images / "manifest.json").stat().st_size / 1e6,
        "index, MB": (made.latents / "index.h5").stat().st_size / 1e6,
        "record, kB": (made.latents / "settings.json").stat().st_size / 1e3,
        "samples": made.sampled,
    }


def starts(made: StandIn, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Everything that a stage does before it computes, each in processes of its own."""
    rows = []
    for what, work in MEASURED.items():
        rows.append(
            _row(what, made.count, [_forked(partial(_timed, work, made))() for _ in range(options.repetitions)])
        )
    if made.bytes <= options.read:
        rows.append(_row(VERIFY, made.count, [_forked(partial(_timed, verify_latents, made))()]))
        drop(made)
    return rows


def _timed(work: Callable[[StandIn], None], made: StandIn) -> dict[str, float]:
    """Seconds on the clock and of the processor, which other programs disturb less, and how far memory rises, MB."""
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident memory so far is forgotten
    held, wall, cpu = memory("status")["VmRSS"], time.perf_counter(), time.process_time()
    work(made)
    seconds, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"seconds": seconds, "cpu": cpu, "mb": memory("status")["VmHWM"] - held}


def _row(what: str, count: int, runs: list[dict[str, float]]) -> dict[str, Any]:
    least = {key: min(run[key] for run in runs) for key in ("seconds", "cpu")}
    row = {"what": what, "images": count, **least, "mb": max(run["mb"] for run in runs), "runs": runs}
    print(f"{count:>9,}  {what:<65} {row['cpu']:8.3f} s  {row['mb']:7.1f} MB", flush=True)
    return row


def drop(made: StandIn) -> None:
    """Give the page cache back what reading the holes has put there."""
    for path in made.latents.glob("shard-*.h5"):
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def growth(rows: list[dict[str, Any]], sizes: list[int]) -> list[dict[str, Any]]:
    """Processor seconds and MB by size, and the exponent between the last two sizes that were measured."""
    shown = []
    for what in dict.fromkeys(row["what"] for row in rows):
        by_size = {row["images"]: row for row in rows if row["what"] == what}
        seconds = {size: by_size[size]["cpu"] for size in sizes if size in by_size}
        line: dict[str, Any] = {"what": what}
        line |= {f"s, {size:,}": seconds.get(size, "") for size in sizes}
        line["MB at most"] = max(row["mb"] for row in by_size.values())
        line["exponent"] = _exponent(seconds)
        shown.append(line)
    return shown


def _exponent(seconds: dict[int, float]) -> float | str:
    if len(seconds) < 2:
        return ""
    (small, before), (large, after) = [*seconds.items()][-2:]
    return math.log(max(after, 1e-9) / max(before, 1e-9)) / math.log(large / small)


# DVC: tiny files in real numbers, and a few real shards

# With its peak of resident memory, kB: what the system tells of a child counts the parent's before it began.
DVC = """
import sys
from pathlib import Path
from dvc.cli import main
code = main(sys.argv[1:])
print([line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")][0])
sys.exit(code)
"""


def dvc(made: StandIn, folder: Path) -> list[dict[str, Any]]:
    """`dvc commit` and `dvc status` of as many files as the store has, of a page each."""
    shards = len(list(made.latents.glob("shard-*.h5")))
    outputs = {shard_name(shard): np.full(512, shard, np.int64).tobytes() for shard in range(shards)}
    found = _dvc_project(folder, lambda out: [(out / name).write_bytes(data) for name, data in outputs.items()])
    return [_row(f"DVC, {what} of all shards, tiny", made.count, [run]) for what, run in found.items()]


def dvc_by_bytes(made: StandIn, folder: Path) -> float:
    """Processor seconds that `dvc commit` takes for a byte, by a few shards of full size beside as many tiny ones."""
    first = made.latents / shard_name(0)
    size = first.stat().st_size
    runs = {}
    for kind in ("tiny", "whole"):

        def fill(out: Path, kind: str = kind) -> None:
            for shard in range(SHARDS_FOR_DVC):
                path = out / shard_name(shard)
                if kind == "whole":
                    copy_with_holes(first, path)
                with open(path, "r+b" if kind == "whole" else "wb") as file:
                    file.write(bytes([shard]))  # no two alike, or one would be read

        runs[kind] = _dvc_project(folder / kind, fill)["commit"]["cpu"]
    return (runs["whole"] - runs["tiny"]) / (SHARDS_FOR_DVC * size)


def _dvc_project(folder: Path, fill: Callable[[Path], object]) -> dict[str, dict[str, float]]:
    """Commit an output that `fill` makes, and ask for its status: DVC's first look, a second, and one at new times."""
    out = folder / "latents"
    out.mkdir(parents=True)
    fill(out)
    (folder / "dvc.yaml").write_text("stages:\n  encode-latents:\n    cmd: 'true'\n    outs: [latents]\n")
    environment = os.environ | {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(folder / "site")}
    for setting in (["init", "--no-scm", "--quiet"], ["config", "cache.type", "reflink,hardlink,copy"]):
        subprocess.run(["dvc", *setting], cwd=folder, env=environment, check=True)
    found = {"commit": _dvc(["commit", "--force", "--quiet"], folder, environment)}
    found["status"] = _dvc(["status", "--quiet"], folder, environment)
    return found


def _dvc(command: list[str], folder: Path, environment: dict[str, str]) -> dict[str, float]:
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", DVC, *command], cwd=folder, env=environment, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    peak = int(process.stdout.read().split()[-1]) * 1024 / 1e6
    _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, command
    process.returncode = 0
    seconds, cpu = time.perf_counter() - started, usage.ru_utime + usage.ru_stime
    return {"seconds": seconds, "cpu": cpu, "mb": peak}


# Processes that train at once


def training(made: StandIn, count: int) -> dict[str, Any]:
    """Memory of each of `count` processes that hold the store and the order, once they have read twenty batches."""
    ready, end = mp.Barrier(count), mp.Barrier(count)
    found = [_forked(partial(_train, made, rank, count, ready, end)) for rank in range(count)]
    values = [one() for one in found]
    drop(made)
    most = {key: max(value[key] for value in values) for key in values[0]}
    return {"images": made.count, "processes": count, **most}


def _train(made: StandIn, rank: int, count: int, ready: Barrier, end: Barrier) -> dict[str, float]:
    before = memory("smaps_rollup")
    store = Store(made.latents)
    sampler = EpochSampler(len(store), BATCH, 0)
    for step in range(20):
        indices, flips = sampler.batch(step)
        for field in store.fields:
            store.read(field, indices[rank::count], flips[rank::count])
    ready.wait()
    after, files = memory("smaps_rollup"), len(os.listdir("/proc/self/fd"))
    end.wait()  # what processes share counts in part for each of them, while all are here
    grown = after["Private_Dirty"] - before["Private_Dirty"]
    return {"resident, MB": after["Rss"], "shared out (PSS), MB": after["Pss"], "grown, MB": grown, "open files": files}


def memory(table: str) -> dict[str, float]:
    """Of this process, MB, by name: `status` or `smaps_rollup`."""
    lines = (line.split() for line in Path("/proc/self", table).read_text().splitlines())
    return {line[0][:-1]: int(line[1]) * 1024 / 1e6 for line in lines if line[-1] == "kB"}


def _forked(work: Callable[[], dict[str, float]]) -> Callable[[], dict[str, float]]:
    """Start `work` in a process that has everything imported; the call that waits for what it gives."""
    here, there = mp.Pipe(duplex=False)
    process = mp.Process(target=lambda: there.send(work()))
    process.start()
    there.close()

    def wait() -> dict[str, float]:
        found = here.recv()
        process.join()
        return found

    return wait


if __name__ == "__main__":
    main()

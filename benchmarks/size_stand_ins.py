"""Data of ImageNet's size that takes little disk: what `imagenet_size.py` opens, written by the project's own writers.

One shard is written whole, by `StoreWriter`, of latents that are all zero; every other shard is that file again with
holes where it is zero, which to a reader are the same bytes. Image files are one small PNG under many names.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sfd_cli.artifacts.kept_semantics import SEMANTICS
from sfd_cli.artifacts.recipe import Recipe, Record
from sfd_cli.artifacts.sample_folder import LABELS, NPZ, SampleFolder
from sfd_cli.checksums import checksums_of, remember
from sfd_cli.data.contents import write_contents
from sfd_cli.data.images import ImageManifest
from sfd_cli.data.kept_rows import KEY_BYTES
from sfd_cli.data.moments import Moments
from sfd_cli.data.shards import CHANNEL_AXIS, PAGE, StoreWriter
from sfd_cli.data.store import Field, shard_name
from sfd_cli.files import write_json

CLASSES = 1000
GRID, TEXTURE, SEMANTIC = 16, 32, 16
FIELDS = {"texture": Field((2, TEXTURE, GRID, GRID)), "semantic": Field((2, SEMANTIC, GRID, GRID))}
# Of a file system as ext4 allows a file 65,000 names.
LINKS = 60_000
# Of 50,000 samples beside 1,281,167 images.
SAMPLES_SHARE = 50_000 / 1_281_167


@dataclass(frozen=True)
class StandIn:
    """What a project of `count` images has on the disk.

    Attributes:
        root: the folder of it all.
        count: images.
        shard_size: images of a shard.
    """

    root: Path
    count: int
    shard_size: int

    @property
    def images(self) -> Path:
        """The artifact of `sfd prepare-data`: a manifest, hashes of contents and a record."""
        return self.root / "images"

    @property
    def tree(self) -> Path:
        """A folder of images in class folders, every image a name of one small PNG."""
        return self.root / "tree"

    @property
    def latents(self) -> Path:
        """The artifact of `sfd encode-latents`."""
        return self.root / "latents"

    @property
    def samples(self) -> Path:
        """The artifact of `sfd sample`, of SAMPLES_SHARE as many images."""
        return self.root / "samples"

    @property
    def sampled(self) -> int:
        """Images in it."""
        return max(round(self.count * SAMPLES_SHARE), 1)

    @property
    def bytes(self) -> int:
        """Bytes of the shards, holes included."""
        return sum(path.stat().st_size for path in self.latents.glob("shard-*.h5"))

    def writer(self) -> StoreWriter:
        """The writer of its latents; every row has a key, the same one."""
        keys = [bytes(KEY_BYTES)] * self.count
        return StoreWriter(self.latents, FIELDS, self.count, self.shard_size, "0" * 64, {"grid": GRID}, keys)

    def finish(self) -> None:
        """Write the index over all shards."""
        labels, statistics = labels_of(self.count), np.ones(TEXTURE + SEMANTIC)
        files = [file_name(index) for index in range(self.count)]
        classes = [class_name(label) for label in range(CLASSES)]
        self.writer().finish(labels, files, range(self.count), classes, {"mean": statistics, "std": statistics})


def stand_in(folder: Path, count: int, shard_size: int) -> StandIn:
    """Make one in `folder`, or find it there; one that was killed in the making is made anew."""
    made = StandIn(folder / f"{count}-{shard_size}", count, shard_size)
    if not made.root.exists():
        half = StandIn(folder / f"{count}-{shard_size}.tmp", count, shard_size)
        shutil.rmtree(half.root, ignore_errors=True)
        half.root.mkdir(parents=True)
        _write_images(half)
        _write_latents(half)
        _write_samples(half)
        half.root.rename(made.root)
        write_manifest(made)  # which names the place
    return made


def class_name(label: int) -> str:
    """As long as ImageNet's."""
    return f"n{label:08d}"


def labels_of(count: int) -> np.ndarray:
    """Classes of as many images as `count`, int64, sorted, about equally many of each."""
    return np.arange(count) * CLASSES // count


def file_name(index: int) -> str:
    """Of an image of `labels_of`: as long as ImageNet's, in the order of the index within its class."""
    return f"{index:08d}.JPEG"


def names(count: int) -> list[str]:
    """`CLASS/FILE` of all images, in the manifest's order."""
    return [f"{class_name(label)}/{file_name(index)}" for index, label in enumerate(labels_of(count).tolist())]


def write_manifest(made: StandIn) -> None:
    """The artifact of `sfd prepare-data`."""
    digests = {name: f"{index:064x}" for index, name in enumerate(names(made.count))}
    manifest = ImageManifest.of(made.tree, digests)
    made.images.mkdir(exist_ok=True)
    manifest.save(made.images, str(made.tree.resolve()))
    write_contents(made.images, manifest, digests)
    _record("prepare-data", made.images)


def _write_images(made: StandIn) -> None:
    """A tree of names of a few small files."""
    found = names(made.count)
    for label in range(CLASSES):
        (made.tree / class_name(label)).mkdir(parents=True)
    _link_all([made.tree / name for name in found], made.root)


def _write_latents(made: StandIn) -> None:
    """Shards of zeros, the index and the record; the first and the last shard are what `StoreWriter` wrote."""
    made.latents.mkdir()
    writer = made.writer()
    whole = writer.shard_count - 1
    for shard in {0, whole}:
        zeros = {name: np.zeros((len(writer.rows(shard)), *field.shape), field.dtype) for name, field in FIELDS.items()}
        with writer.shard(shard) as file:
            file.write(0, zeros)
            for name, array in zeros.items():
                file.keep(f"moments_{name}", Moments.of(array, CHANNEL_AXIS).to_array())
    first = made.latents / shard_name(0)
    for shard in range(1, whole):
        copy_with_holes(first, made.latents / shard_name(shard))
    made.finish()
    # All but the last are equal, so that one has to be read for their checksums.
    read = checksums_of(made.latents, {path.name for path in (first, made.latents / shard_name(whole))} | {"index.h5"})
    checksums = {shard_name(shard): read[shard_name(0)] for shard in range(whole)} | read
    _record("encode-latents", made.latents, checksums)


def _write_samples(made: StandIn) -> None:
    """A sample folder by the names of its files."""
    made.samples.mkdir()
    folder = SampleFolder(made.samples)
    _link_all([folder.image(index) for index in range(made.sampled)], made.root)
    write_json(made.samples / LABELS, labels_of(made.sampled).tolist())
    for name in (NPZ, SEMANTICS):
        (made.samples / name).write_bytes(b"0")
    facts = {"class_names": [class_name(label) for label in range(CLASSES)]}
    _record("sample", made.samples, facts=facts)


def copy_with_holes(source: Path, target: Path) -> None:
    """The same bytes, with a hole for every page of zeros."""
    content = np.fromfile(source, np.uint8)
    pages = content[: len(content) // PAGE * PAGE].reshape(-1, PAGE)
    with open(target, "wb") as file:
        for page in np.flatnonzero(pages.any(axis=1)).tolist():
            os.pwrite(file.fileno(), pages[page], page * PAGE)
        os.pwrite(file.fileno(), content[pages.size :], pages.size)
        file.truncate(len(content))


def _link_all(paths: list[Path], folder: Path) -> None:
    """One small PNG under all these names, in as many copies as the file system wants."""
    small = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    for number, path in enumerate(paths):
        if number % LINKS == 0:
            original = folder / f"original-{path.parent.name}-{number}.png"
            Image.fromarray(small).save(original)
        os.link(original, path)


def _record(command: str, folder: Path, checksums: dict[str, str] | None = None, facts: dict | None = None) -> None:
    """The record of a finished artifact, and the note that its files are whole."""
    if checksums is None:
        checksums = checksums_of(folder, [path.relative_to(folder).as_posix() for path in folder.rglob("*.*")])
    remember(folder, checksums)
    Record.of(Recipe(command, folder, {}, {}), facts or {}, checksums).write(folder)

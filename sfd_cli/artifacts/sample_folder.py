"""The sample folder: one PNG per image, their labels, an ADM-format npz of them all, and their semantic latents.

`sfd sample` writes it, equal byte for byte every time; scores and reports also read other folders of images.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import BaseModel, NonNegativeInt

from sfd_cli.artifacts.fingerprints import finished
from sfd_cli.artifacts.kept_semantics import SEMANTICS
from sfd_cli.artifacts.recipe import SETTINGS, Record
from sfd_cli.config import EDITS
from sfd_cli.data.images import DECODE_ERRORS, image_files
from sfd_cli.data.prefetch import threaded_map
from sfd_cli.errors import StageFailure, UserError
from sfd_cli.files import atomic_path, parsed, read_as, write_json

NPZ, LABELS = "samples.npz", "labels.json"
# Zip's first day: a member's date must not say when it was written.
NO_DATE = (1980, 1, 1, 0, 0, 0)
# PNGs that may still be in the making while the device goes on.
WRITTEN_BEHIND = 128


CHUNK = "sfd"
"""Keyword of a PNG's text chunk that says, as JSON, what made it."""


@dataclass(frozen=True)
class SampleFolder:
    """The folder that `sfd sample` writes, with `workers` threads that read and write PNGs.

    `about` gives, of an image's index, what to say in the text chunk `sfd` of its PNG; None: nothing.
    """

    path: Path
    workers: int = 2
    about: Callable[[int], Mapping[str, Any]] | None = None

    def image(self, index: int) -> Path:
        """The path of image `index`."""
        return self.path / f"{index:06d}.png"

    def write(self, images: Iterable[tuple[int, np.ndarray]]) -> Iterator[int]:
        """Write images (H, W, 3) uint8 by their index, in threads while the next ones are made; yields the indices."""
        return threaded_map(self._write, images, max(self.workers, 1), WRITTEN_BEHIND)

    def missing(self, indices: Iterable[int]) -> list[int]:
        """Those of `indices` whose PNG is not there or not whole."""
        names = {entry.name for entry in os.scandir(self.path)}
        indices = list(indices)
        present = [index for index in indices if self.image(index).name in names]
        whole = threaded_map(is_whole_png, map(self.image, present), max(self.workers, 1))
        kept = {index for index, is_whole in zip(present, whole, strict=True) if is_whole}
        return [index for index in indices if index not in kept]

    def is_whole(self, count: int) -> bool:
        """Whether all files of `count` images are there, by name."""
        present = {entry.name for entry in os.scandir(self.path)}
        return {self.image(index).name for index in range(count)} | {NPZ, LABELS} <= present

    def finish(self, labels: list[int]) -> None:
        """Write `labels.json` and `samples.npz` beside the PNGs that they describe.

        `arr_0` is uint8 (N, H, W, 3) and `arr_1` the labels, int64 (N,), as in ADM's sample batches. The images are
        streamed, so that 50,000 of them need no memory, and stored uncompressed, so that a reader can map them.

        Raises:
            StageFailure: a PNG cannot be read back.
        """
        write_json(self.path / LABELS, labels)
        images = threaded_map(read_png, map(self.image, range(len(labels))), max(self.workers, 1))
        first = next(images)
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(labels), *first.shape)}
        with atomic_path(self.path / NPZ) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            with archive.open(zipfile.ZipInfo("arr_0.npy", NO_DATE), "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                member.write(first.tobytes())
                for image in images:
                    member.write(image.tobytes())
            with archive.open(zipfile.ZipInfo("arr_1.npy", NO_DATE), "w") as member:
                np.lib.format.write_array(member, np.asarray(labels, dtype=np.int64))
        os.sync()

    def _write(self, item: tuple[int, np.ndarray]) -> int:
        """Write one PNG under a temporary name and rename it.

        Not forced to the disk each time, which would cost more than the compression: `missing` finds what a power cut
        has damaged, and `finish` ends with everything on the disk.
        """
        index, image = item
        path = self.image(index)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        text = None if self.about is None else as_text(self.about(index))
        Image.fromarray(image).save(temporary, format="PNG", pnginfo=text)
        os.replace(temporary, path)
        return index


class _Facts(BaseModel):
    """What `sfd sample` notes about its images."""

    class_names: list[str]
    protocol: dict[str, Any] = {}
    semantics: bool = False


@dataclass(frozen=True)
class Samples:
    """Images to look at: those of a finished sample folder, or of a folder from elsewhere.

    Attributes:
        files: image files in order.
        labels: class index of each; all zero for a folder that `sfd sample` did not write.
        side: side of the square images, pixels, from the first.
        description: where they are, and the fingerprint of what made them.
        settings: those that `sfd sample` recorded; empty for another folder.
        class_names: of every class, likewise.
        given_noise: whether the noise came from a file instead of the seed.
        protocol: the record of what decided the images, as `sfd sample` noted it; empty where it did not.
        semantics: where their semantic latents are, see `artifacts.kept_semantics`; None where none are kept.
    """

    files: list[Path]
    labels: list[int]
    side: int
    description: str
    settings: dict[str, Any]
    class_names: list[str]
    given_noise: bool = False
    protocol: dict[str, Any] = field(default_factory=dict)
    semantics: Path | None = None

    @property
    def edits(self) -> list[str]:
        """Keys of EDITS by which they were made, beside noise and class; see `config.Sample`."""
        return [key for key in EDITS if self.settings.get(key) is not None]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Look into a folder; only what `sfd sample` finished counts as its output.

        Raises:
            UserError: no images, unfinished, or images are missing from a finished folder.
        """
        if not Path(folder).is_dir():
            raise UserError(folder, "does not exist", "run `sfd sample` first")
        if Record.read(folder) is None:
            files = image_files(folder)
            return cls(files, [0] * len(files), _side(files[0]), str(folder), {}, [])
        record = finished(folder, "sfd sample")
        labels = read_as(list[NonNegativeInt], folder / LABELS)
        files = [SampleFolder(folder).image(index) for index in range(len(labels))]
        missing = [path for path in files if not path.is_file()]
        if missing:
            problem = f"is missing ({len(missing)} of {len(files)} samples)"
            raise UserError(missing[0], problem, "run `sfd sample` again")
        description = f"{folder} {record.fingerprint[:16]}"
        facts = parsed(_Facts, record.facts, folder / SETTINGS)
        if not labels or max(labels) >= len(facts.class_names):
            raise UserError(folder / LABELS, f"names no class of {len(facts.class_names)}", "run `sfd sample` again")
        from_file = "noise" in record.inputs
        side, settings = _side(files[0]), record.settings
        semantics = Path(folder) / SEMANTICS if facts.semantics else None
        return cls(files, labels, side, description, settings, facts.class_names, from_file, facts.protocol, semantics)


def as_text(content: Mapping[str, Any]) -> PngInfo:
    """The text chunk `sfd` of a PNG, with `content` as JSON."""
    text = PngInfo()
    text.add_itxt(CHUNK, json.dumps(content))
    return text


def choose(available: int, count: int | None, seed: int) -> list[int]:
    """Indices of `count` random samples of those `available`, ascending; of all where it is None.

    Raises:
        UserError: there are fewer.
    """
    if count is None:
        return list(range(available))
    if count > available:
        raise UserError("fid.num_images", f"{count} is more than {available} samples", "run `sfd sample` for more")
    order = torch.randperm(available, generator=torch.Generator().manual_seed(seed))
    return sorted(order[:count].tolist())


def is_whole_png(path: Path) -> bool:
    """Whether the image decodes."""
    try:
        with Image.open(path) as image:
            image.load()
    except DECODE_ERRORS:
        return False
    return True


def read_png(path: Path) -> np.ndarray:
    """The pixels (H, W, 3) uint8.

    Raises:
        StageFailure: the image does not decode.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except DECODE_ERRORS as error:
        raise StageFailure(path, f"cannot be read back ({error})", "run `sfd sample` again") from None


def _side(path: Path) -> int:
    try:
        with Image.open(path) as image:
            return min(image.size)
    except DECODE_ERRORS as error:
        raise UserError(path, f"cannot be read as an image ({error})", "run `sfd sample` again") from None

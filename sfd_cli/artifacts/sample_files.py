"""The files of `sfd sample`: one PNG per image and an ADM-format npz of them all, equal byte for byte every time."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from sfd_cli.data.images import DECODE_ERRORS
from sfd_cli.data.prefetch import threaded_map
from sfd_cli.errors import StageFailure
from sfd_cli.files import atomic_path, write_json

NPZ, LABELS = "samples.npz", "labels.json"
# Zip's first day: a member's date must not say when it was written.
NO_DATE = (1980, 1, 1, 0, 0, 0)


def image_path(folder: Path, index: int) -> Path:
    """Where image `index` lies."""
    return folder / f"{index:06d}.png"


def write_png(path: Path, image: np.ndarray) -> None:
    """Write an image (H, W, 3) uint8 under a temporary name and rename it.

    Not forced to the disk each time, which would cost more than the compression: `is_whole_png` finds what a power
    cut has damaged, and `write_archive` ends with everything on the disk.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    Image.fromarray(image).save(temporary, format="PNG")
    os.replace(temporary, path)


def is_whole_png(path: Path) -> bool:
    """Whether the image is there and decodes."""
    try:
        with Image.open(path) as image:
            image.load()
    except DECODE_ERRORS:
        return False
    return True


def is_whole_folder(folder: Path, count: int) -> bool:
    """Whether all files of `count` images are there, by name."""
    present = {entry.name for entry in os.scandir(folder)}
    wanted = {image_path(folder, index).name for index in range(count)} | {NPZ, LABELS}
    return wanted <= present


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of a run that was killed."""
    for path in folder.glob(".*.tmp"):
        path.unlink()


def write_archive(folder: Path, labels: list[int], workers: int) -> None:
    """Write `labels.json` and `samples.npz` beside the PNGs they speak of.

    `arr_0` is uint8 (N, H, W, 3) and `arr_1` the labels, int64 (N,), as in ADM's sample batches. The images are
    streamed, so that 50,000 of them need no memory, and stored uncompressed, so that a reader can map them.

    Raises:
        StageFailure: a PNG cannot be read back.
    """
    write_json(folder / LABELS, labels)
    paths = (image_path(folder, index) for index in range(len(labels)))
    images = threaded_map(_read_png, paths, max(workers, 1))
    first = next(images)
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(labels), *first.shape)}
    with atomic_path(folder / NPZ) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with archive.open(zipfile.ZipInfo("arr_0.npy", NO_DATE), "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            member.write(first.tobytes())
            for image in images:
                member.write(image.tobytes())
        with archive.open(zipfile.ZipInfo("arr_1.npy", NO_DATE), "w") as member:
            np.lib.format.write_array(member, np.asarray(labels, dtype=np.int64))
    os.sync()


def _read_png(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except DECODE_ERRORS as error:
        raise StageFailure(f"{path} cannot be read back ({error}); run `sfd sample` again") from None

"""Fashion-MNIST (MIT licence): 60,000 grey pictures of clothes in ten classes, from the IDX files that hold them."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import struct
import zlib
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

from sfd_cli.config import Settings
from sfd_cli.data.image_sources import ImageSet, in_threads, refuse_overlap
from sfd_cli.data.images import ImageManifest, evenly_spaced
from sfd_cli.errors import UserError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
UNSIGNED_BYTES = 0x08
SIDE = 28
CLASSES = (
    "t-shirt-top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle-boot",
)


def fashion_mnist(settings: Settings) -> ImageSet:
    """The training images as grey PNGs in the folder that is written, from `images.folder` or Debian's package.

    Raises:
        UserError: a file is missing or damaged, the two do not belong together, the folder overlaps the one that is
            written, or `images.size` is below 28.
    """
    images = settings.images
    if images.size < SIDE:
        problem = f"{images.size} is less than the {SIDE} pixels of fashion_mnist"
        raise UserError("images.size", problem, f"use {SIDE} or more; 32 fits most grids")
    source = images.folder or DEBIAN
    refuse_overlap(source, settings.paths.images)
    pixels, labels = training_set(source)

    def write(folder: Path) -> ImageManifest:
        for name in CLASSES:
            (folder / name).mkdir(exist_ok=True)
        chosen = evenly_spaced(len(pixels), images.limit)
        files = [f"{CLASSES[labels[index]]}/{index:05d}.png" for index in chosen]

        def draw(one: tuple[str, int]) -> str:
            file, index = one
            content = _png(on_canvas(pixels[index], images.size))
            (folder / file).write_bytes(content)
            return hashlib.sha256(content).hexdigest()

        digests = in_threads(draw, list(zip(files, chosen, strict=True)), settings.runtime.threads, "writing images")
        os.sync()  # once: as many fsyncs as images would take longer than all the rest
        manifest = ImageManifest.of(folder, dict(zip(files, digests, strict=True)))
        manifest.save(folder, root=".")
        return manifest

    return ImageSet(
        settings=images.model_dump(include={"source", "size", "limit"}),
        inputs={
            "images": hashlib.sha256(pixels.tobytes()).hexdigest(),
            "labels": hashlib.sha256(labels.tobytes()).hexdigest(),
            "pillow": version("pillow"),
        },
        write=write,
        free={"folder": str(source)},
        shown={"size": f"{images.size} x {images.size}"},
    )


def training_set(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (n, 28, 28), 0 being the background, and labels uint8 (n,), of the files in a folder.

    Raises:
        UserError: a file is missing or damaged, or the two do not belong together.
    """
    places = {name: _find(folder, name) for name in (IMAGES, LABELS)}
    pixels, labels = _read_idx(places[IMAGES], 3), _read_idx(places[LABELS], 1)
    if pixels.shape[1:] != (SIDE, SIDE):
        problem = f"holds images of {pixels.shape[1]} x {pixels.shape[2]} pixels, not {SIDE} x {SIDE}"
        raise UserError(places[IMAGES], problem, _REMEDY)
    if not len(pixels):
        raise UserError(places[IMAGES], "holds no images", _REMEDY)
    if len(pixels) != len(labels):
        raise UserError(places[LABELS], f"holds {len(labels)} labels for {len(pixels)} images", _REMEDY)
    if labels.max() >= len(CLASSES):
        raise UserError(places[LABELS], f"holds the label {labels.max()}, but there are {len(CLASSES)}", _REMEDY)
    return pixels, labels


def on_canvas(image: np.ndarray, size: int) -> np.ndarray:
    """The image, each pixel repeated as often as `size` allows, in the middle of `size` x `size` background pixels.

    28 pixels on 32 are the images themselves with a border of 2; no pixel is ever interpolated.
    """
    times = size // SIDE
    large = image.repeat(times, axis=0).repeat(times, axis=1)
    before = (size - len(large)) // 2
    return np.pad(large, (before, size - len(large) - before))


_REMEDY = "`apt install dataset-fashion-mnist` anew, or set images.folder to whole files"


def _find(folder: Path, name: str) -> Path:
    places = [folder / f"{name}.gz", folder / name]
    for place in places:
        if place.is_file():
            return place
    problem = f"{folder} has no {name} and no {name}.gz"
    remedy = f"`apt install dataset-fashion-mnist`, or name a folder with {IMAGES}[.gz] and {LABELS}[.gz]"
    raise UserError("images.folder", problem, remedy)


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The array uint8 of an IDX file: its kind, its sides, and then all its bytes.

    Not by torchvision, whose reader opens no gzip files and tells damage by bare assertions.

    Raises:
        UserError: cannot be read, is something else, or is cut.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(path, f"cannot be read ({error})", _REMEDY) from None
    start = 4 + 4 * dimensions
    if len(content) < start or struct.unpack_from(">I", content) != (UNSIGNED_BYTES << 8 | dimensions,):
        raise UserError(path, f"is not an IDX file of bytes in {dimensions} dimensions", _REMEDY)
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    values = np.frombuffer(content, np.uint8, offset=start)
    if len(values) != np.prod(shape):
        problem = f"holds {len(values)} bytes, where its header says {' x '.join(map(str, shape))}"
        raise UserError(path, problem, _REMEDY)
    return values.reshape(shape)


def _png(pixels: np.ndarray) -> bytes:
    """A grey PNG; whoever reads it gets RGB."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "png")
    return content.getvalue()

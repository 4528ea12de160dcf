"""Image sets: the manifest that lists one, decoding, the ADM centre crop, and reading batches in threads."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Annotated

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, Field

from sfd_cli.data.archives import StoredImage
from sfd_cli.data.transfer import host_buffer, sent
from sfd_cli.devices import kind_of
from sfd_cli.errors import UserError
from sfd_cli.files import read_as, write_json
from sfd_cli.messages import say

MANIFEST, AGAIN = "manifest.json", "run `sfd prepare-data` again"
EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test"})
Place = tuple[str | int, ...]
# What Pillow's decoders are known to raise on damaged files.
DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class _Content(BaseModel):
    """`manifest.json`: where the images are, their fingerprint, and the files of every class."""

    root: str
    fingerprint: str
    images: Annotated[dict[str, list[str]], Field(min_length=1)]
    places: list[list[str | int]] = []


@dataclass(frozen=True)
class ImageManifest:
    """The images of a set in their fixed order; everything downstream names an image by its index here.

    Attributes:
        root: the folder that holds the images, or the archives that do.
        classes: class names, sorted.
        files: names `CLASS/...` of the images, grouped by class; POSIX paths relative to `root` where there are no
            places.
        labels: class index of every file.
        fingerprint: covers names and contents, not the place.
        places: where each image is: a file relative to `root`, and where in that, if it is an archive; empty where the
            names say it all.
    """

    root: Path
    classes: list[str]
    files: list[str]
    labels: list[int]
    fingerprint: str
    places: list[Place] = field(default_factory=list)

    @classmethod
    def of(
        cls, root: Path, digests: Mapping[str, str], places: Mapping[str, Place] = MappingProxyType({})
    ) -> ImageManifest:
        """A manifest of the files in `digests` (name -> hash of the contents), at `places` if the names do not tell.

        A class exists if at least one of its images is listed.
        """
        files = sorted(digests, key=by_folders)
        names = [name.split("/", 1)[0] for name in files]
        classes = sorted(set(names))
        index = {name: label for label, name in enumerate(classes)}
        labels, where = [index[name] for name in names], [places[file] for file in files] if places else []
        return cls(Path(root), classes, files, labels, fingerprint_of(files, map(digests.__getitem__, files)), where)

    @classmethod
    def load(cls, folder: Path) -> ImageManifest:
        """Read the manifest that `sfd prepare-data` left in `folder`.

        Raises:
            UserError: there is none, it is damaged, or its images are gone.
        """
        path = Path(folder) / MANIFEST
        if not path.exists():
            raise UserError(folder, "holds no image manifest", "run `sfd prepare-data` first")
        content = read_as(_Content, path, AGAIN)
        files = [f"{name}/{file}" for name, members in content.images.items() for file in members]
        labels = [label for label, members in enumerate(content.images.values()) for _ in members]
        places = [tuple(place) for place in content.places]
        if places and (len(places) != len(files) or not all(place and isinstance(place[0], str) for place in places)):
            raise UserError(path, "is damaged (places: not one for every image)", AGAIN)
        root = Path(folder, content.root)
        if not root.is_dir():
            problem = f"names the image folder {root}, which is gone"
            raise UserError(path, problem, "put it back or run `sfd prepare-data`")
        return cls(root, list(content.images), files, labels, content.fingerprint, places)

    def save(self, folder: Path, root: str) -> None:
        """Write the manifest into `folder`; `root` is absolute, or relative to `folder`."""
        images: dict[str, list[str]] = {name: [] for name in self.classes}
        for file in self.files:
            name, rest = file.split("/", 1)
            images[name].append(rest)
        places = {"places": self.places} if self.places else {}
        write_json(Path(folder) / MANIFEST, {"root": root, "fingerprint": self.fingerprint, "images": images} | places)

    def __len__(self) -> int:
        return len(self.files)

    def path(self, index: int) -> Path | StoredImage:
        """Where image `index` lies; either has its bytes."""
        if not self.places:
            return self.root / self.files[index]
        file, *inner = self.places[index]
        return StoredImage(self.root / str(file), tuple(inner)) if inner else self.root / str(file)

    def class_counts(self) -> dict[str, int]:
        """Images of every class."""
        counts = np.bincount(self.labels, minlength=len(self.classes))
        return {name: int(count) for name, count in zip(self.classes, counts, strict=True)}


def fingerprint_of(files: Iterable[str], digests: Iterable[str]) -> str:
    """The fingerprint of a manifest: SHA-256 (hex) over names in its order and hashes of their contents."""
    total = hashlib.sha256()
    for name, digest in zip(files, digests, strict=True):
        total.update(f"{name}\n{digest}\n".encode())
    return total.hexdigest()


def by_folders(name: str) -> str:
    """Key that sorts names `CLASS/...` folder by folder, as lists of their parts would, ten times as fast.

    The separator comes before everything else that a name may hold.
    """
    return name.replace("/", "\0")


def evenly_spaced(count: int, limit: int | None) -> list[int]:
    """At most `limit` of the indices `0 .. count - 1`, ascending, spread evenly; all of them without a limit."""
    if limit is None or limit >= count:
        return list(range(count))
    return [position * count // limit for position in range(limit)]


def decode_image(source: Path | StoredImage | bytes) -> Image.Image:
    """Decode an image completely, as RGB; what is transparent becomes white.

    Raises:
        one of DECODE_ERRORS: the file is not a whole image.
    """
    content = source.read_bytes() if isinstance(source, StoredImage) else source
    with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
        image.load()
        return as_rgb(image)


def why_not_decoded(error: Exception) -> str:
    """One of DECODE_ERRORS as a clause; Pillow's own, of bytes, has only their address in memory to tell."""
    if isinstance(error, UnidentifiedImageError):
        return "no image of a kind that can be read"
    return " ".join(str(error).split()) or type(error).__name__


def as_rgb(image: Image.Image) -> Image.Image:
    """A decoded image as RGB; what is transparent becomes white."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(canvas, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The `size` x `size` middle of an image whose shorter side is scaled to `size` (ADM's centre crop).

    Halving with a box filter down to less than twice the size, then bicubic: what published ImageNet
    numbers were made with, so it must agree to the bit.
    """
    while min(image.size) >= 2 * size:
        width, height = image.size
        image = image.resize((width // 2, height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


class ImageReader:
    """Decoded, centre-cropped images of a manifest, read by a pool of threads.

    Args:
        manifest: the set.
        size: side of the square crops, pixels.
        workers: threads; 0 decodes in the calling thread.
        device: where the images are handed over, the CPU unless one is given.
    """

    def __init__(
        self, manifest: ImageManifest, size: int, workers: int = 2, device: torch.device | None = None
    ) -> None:
        self.manifest = manifest
        self.size = size
        self.workers = workers
        self.device = torch.device("cpu") if device is None else device

    def read(self, indices: Sequence[int]) -> torch.Tensor:
        """The images at `indices`, in that order: uint8, (n, 3, size, size).

        Raises:
            UserError: a file is gone or no longer decodes; names it.
        """
        return next(self.iterate([indices]))

    def iterate(self, batches: Iterable[Sequence[int]], ahead: int = 2) -> Iterator[torch.Tensor]:
        """`read` for one batch of indices after the other, up to `ahead` batches being decoded in advance."""
        if self.workers == 0:
            yield from (self._stack(map(self._load, batch)) for batch in batches)
            return
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="images")
        pending: deque[list[Future[np.ndarray]]] = deque()
        try:
            for batch in batches:
                pending.append([pool.submit(self._load, index) for index in batch])
                if len(pending) > ahead:
                    yield self._stack(future.result() for future in pending.popleft())
            while pending:
                yield self._stack(future.result() for future in pending.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _stack(self, images: Iterable[np.ndarray]) -> torch.Tensor:
        decoded = [*images]
        stacked = host_buffer((len(decoded), self.size, self.size, 3), torch.uint8, self.device)
        if decoded:
            np.stack(decoded, out=stacked.numpy())
        if kind_of(self.device).is_cpu:  # by NumPy, which takes a third of PyTorch's time for bytes
            return torch.from_numpy(np.ascontiguousarray(stacked.numpy().transpose(0, 3, 1, 2)))
        return sent(stacked, self.device).permute(0, 3, 1, 2).contiguous()

    def _load(self, index: int) -> np.ndarray:
        path = self.manifest.path(int(index))
        try:
            return np.asarray(center_crop(decode_image(path), self.size))
        except DECODE_ERRORS as error:
            problem = f"cannot be read as an image ({why_not_decoded(error)})"
            raise UserError(path, problem, "run `sfd prepare-data` again to leave it out") from None


def list_image_folder(root: Path) -> list[str]:
    """Image files in the class folders of an ImageFolder, relative to `root`, sorted; hidden ones are passed over.

    Where there are no class folders, those in `root` itself, without a folder before their names.

    Raises:
        UserError: `root` is missing, is empty, or its folders are splits and not classes.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError("images.folder", f"{root} is not a folder", "check the path")
    entries = sorted(entry.name for entry in root.iterdir() if not entry.name.startswith("."))
    classes = [name for name in entries if (root / name).is_dir()]
    if not classes:
        loose = [name for name in entries if is_image(name)]
        if not loose:
            remedy = f"put images into {root}/CLASS/, or all of one class into {root}"
            raise UserError("images.folder", f"{root} holds no class folders and no images", remedy)
        return loose
    if set(classes) <= SPLITS:
        problem = f"{root} holds the splits {', '.join(classes)}, not classes"
        raise UserError("images.folder", problem, f"name one of them, such as {root / classes[0]}")
    files = []
    for name in classes:
        for folder, members in _folders(root, name):
            inside = folder.relative_to(root)
            files += [f"{inside.as_posix()}/{member}" for member in members if is_image(member)]
    if not files:
        remedy = f"put some there ({', '.join(sorted(EXTENSIONS))})"
        raise UserError("images.folder", f"the class folders of {root} hold no images", remedy)
    return sorted(files, key=by_folders)


def _folders(root: Path, name: str) -> Iterator[tuple[Path, list[str]]]:
    """The class folder `name` of `root` and all folders in it, each with its files; hidden ones are passed over.

    Links are followed, but every folder is visited once, by its own path rather than by a link where it has one inside
    the class: links may lead back to where they lie.
    """
    seen, pending = {_identity(root)}, [root / name]
    for start in pending:  # which grows by the links that are found
        for place, subfolders, members in os.walk(start):
            folder = Path(place)
            if _identity(folder) in seen:
                say(f"left out: {folder} leads to a folder that is listed already")
                subfolders.clear()
                continue
            seen.add(_identity(folder))
            subfolders[:] = sorted(subfolder for subfolder in subfolders if not subfolder.startswith("."))
            pending += [folder / subfolder for subfolder in subfolders if (folder / subfolder).is_symlink()]
            yield folder, members


def _identity(folder: Path) -> tuple[int, int]:
    state = folder.stat()
    return state.st_dev, state.st_ino


def image_files(folder: Path) -> list[Path]:
    """Image files under `folder`, at any depth, sorted by path; hidden ones are passed over.

    Raises:
        UserError: there is none.
    """
    files = [path for path in sorted(Path(folder).rglob("*")) if is_image(path.name)]
    if not files:
        raise UserError(folder, f"holds no images ({', '.join(sorted(EXTENSIONS))})", "give a folder with some")
    return files


def is_image(name: str) -> bool:
    """Whether a name or a path is of an image, by its extension, and neither hidden nor a resource of macOS."""
    if "/" not in name:  # of a million files in folders these are many times as fast as paths
        return not name.startswith((".", "__MACOSX")) and os.path.splitext(name)[1].lower() in EXTENSIONS
    path = PurePosixPath(name)
    return path.suffix.lower() in EXTENSIONS and not any(part.startswith((".", "__MACOSX")) for part in path.parts)

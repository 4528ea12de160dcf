"""Images inside of zip, tar and Parquet files, read where they are: each by its place, nothing unpacked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sfd_cli.errors import UserError
from sfd_cli.tables import ARCHIVES

Inner = tuple[int | str, ...]
"""Where an image is in an archive, as its format likes: a name, an offset and a size, a row."""


@dataclass(frozen=True)
class Member:
    """An image that an archive lists.

    Attributes:
        name: its POSIX path in there, `CLASS/...` unless `label` tells the class.
        inner: where it is.
        label: its class, a number or a name, where the archive keeps labels beside the images.
    """

    name: str
    inner: Inner
    label: int | str | None = None


class Archive(Protocol):
    """A format of the table ARCHIVES, found by the suffix of a file."""

    def members(self, path: Path) -> Iterator[Member]:
        """The images that it holds, without decoding them; hidden ones are passed over.

        Raises:
            UserError: the file is damaged, ends early, or lacks labels that it should have.
        """
        ...

    def read(self, path: Path, inner: Inner) -> bytes:
        """The bytes of one image, called by several threads.

        Raises:
            OSError: they cannot be read.
        """
        ...


@dataclass(frozen=True)
class StoredImage:
    """An image in an archive, which reads as a path does."""

    path: Path
    inner: Inner

    def read_bytes(self) -> bytes:
        """Its bytes. Raises OSError where they cannot be read."""
        archive: Archive = ARCHIVES[format_of(self.path)]
        return archive.read(self.path, self.inner)

    def __str__(self) -> str:
        return f"{self.path}:{':'.join(map(str, self.inner))}"


def format_of(path: Path) -> str:
    """The format of an archive by its name: its suffix, without the dot."""
    return path.suffix[1:].lower()


def is_archive(path: Path) -> bool:
    """Whether a file is an archive, by its name."""
    return path.is_file() and not path.name.startswith(".") and format_of(path) in ARCHIVES


def list_archives(paths: Sequence[Path]) -> dict[str, StoredImage]:
    """The images of archives that together are one set: `CLASS/...` -> image.

    Folders that hold all images are passed over; loose images are one class, `images`; numbered classes get as many
    digits as the highest, so that they sort by number.

    Raises:
        UserError: an archive is damaged, or there are no images, or no classes, or a name is there twice.
    """
    found = [(path, member) for path in paths for member in _members(path)]
    if not found:
        raise UserError("images.folder", f"{_told(paths)} holds no images", "name another file")
    names = _names([member for _, member in found], paths)
    images: dict[str, StoredImage] = {}
    for name, (path, member) in zip(names, found, strict=True):
        if name in images:
            problem = f"{name} is there twice, in {images[name].path} and in {path}"
            raise UserError("images.folder", problem, "rename one of them")
        images[name] = StoredImage(path, member.inner)
    return images


def _members(path: Path) -> Iterator[Member]:
    if format_of(path) not in ARCHIVES:
        remedy = f"unpack it, or pack it as {', '.join(ARCHIVES)} without compressing the whole"
        raise UserError("images.folder", f"{path} is neither a folder nor a file that is read in place", remedy)
    archive: Archive = ARCHIVES[format_of(path)]
    return archive.members(path)


def _names(members: list[Member], paths: Sequence[Path]) -> list[str]:
    """`CLASS/...` of every member."""
    labels = [member.label for member in members if member.label is not None]
    if labels and len(labels) < len(members):
        problem = f"{_told(paths)} has labels of {len(labels)} images and none of {len(members) - len(labels)}"
        raise UserError("images.folder", problem, "give all of them one")
    if labels:
        digits = max((len(str(label)) for label in labels if isinstance(label, int)), default=0)
        return [f"{str(label).zfill(digits)}/{member.name}" for label, member in zip(labels, members, strict=True)]
    parts = [member.name.split("/") for member in members]
    while len({part[0] for part in parts}) == 1 and min(map(len, parts)) > 2:
        parts = [part[1:] for part in parts]
    loose = sum(len(part) == 1 for part in parts)
    if loose == len(parts):
        return [f"images/{part[0]}" for part in parts]
    if loose:
        problem = f"{_told(paths)} holds {loose} images outside of its class folders"
        raise UserError("images.folder", problem, "put every image into the folder of its class")
    return ["/".join(part) for part in parts]


def _told(paths: Sequence[Path]) -> str:
    return str(paths[0]) if len(paths) == 1 else f"{paths[0]} (and {len(paths) - 1} more)"

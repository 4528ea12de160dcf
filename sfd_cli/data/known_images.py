"""What is known of images that were read before, so that they need not be read again: hashes and sizes, by a stamp.

Beside the folder of a manifest lies `.NAME.known.npy`. An image whose path, size and times of change are what they were
is taken for the same. Of both times, that of the content can be set back by whoever changes an image and that of the
file's own entry cannot: what is left are disks that return other bytes, and these `sfd verify` finds, which reads every
image. The file only saves reading, and may be deleted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from sfd_cli.data.archives import StoredImage
from sfd_cli.data.images import DECODE_ERRORS, decode_image, why_not_decoded
from sfd_cli.files import atomic_path

ENTRY = np.dtype([("stamp", "<u8"), ("digest", "u1", 32), ("sides", "<u4", 2)])


@dataclass(frozen=True)
class Look:
    """What was found of an image that is whole.

    Attributes:
        stamp: of where it was, and as what; see `stamp_of`.
        digest: SHA-256 of its bytes.
        sides: width and height, pixels.
    """

    stamp: int
    digest: bytes
    sides: tuple[int, int]


class KnownImages:
    """What is known of images, by their stamps.

    Args:
        entries: of dtype ENTRY, in ascending order of the stamps.
    """

    def __init__(self, entries: np.ndarray) -> None:
        self._entries = entries

    @classmethod
    def beside(cls, folder: Path) -> Self:
        """What was written beside a manifest's folder; nothing where that is gone or damaged."""
        try:
            found = np.load(_note(folder), allow_pickle=False)
        except (OSError, ValueError, EOFError, SyntaxError):
            found = np.empty(0, ENTRY)
        return cls(found if found.dtype == ENTRY and found.ndim == 1 else np.empty(0, ENTRY))

    def look(self, image: Path | StoredImage) -> Look | str:
        """What is known of an image; it is read and decoded where nothing is. Or what is wrong with it."""
        try:
            stamp = stamp_of(image)
            if (known := self._of(stamp)) is not None:
                return known
            content = image.read_bytes()
            return Look(stamp, hashlib.sha256(content).digest(), decode_image(content).size)
        except DECODE_ERRORS as error:
            return why_not_decoded(error)

    def _of(self, stamp: int) -> Look | None:
        place = int(np.searchsorted(self._entries["stamp"], np.uint64(stamp)))
        if place == len(self._entries) or int(self._entries[place]["stamp"]) != stamp:
            return None
        entry = self._entries[place]
        width, height = entry["sides"].tolist()
        return Look(stamp, entry["digest"].tobytes(), (width, height))


def remember_images(folder: Path, looks: Iterable[Look]) -> None:
    """Write what is known now beside a manifest's folder, in the place of what was."""
    entries = np.array([(look.stamp, np.frombuffer(look.digest, np.uint8), look.sides) for look in looks], ENTRY)
    with suppress(OSError), atomic_path(_note(folder)) as temporary, open(temporary, "wb") as file:
        np.save(file, np.sort(entries, order="stamp"))


def forget_images(folder: Path) -> None:
    """Have every image read next time: one of them is not what its stamp promises."""
    _note(folder).unlink(missing_ok=True)


def stamp_of(image: Path | StoredImage) -> int:
    """64 bits of where an image is, its size and its times of change, or those of the archive that it is in.

    Raises:
        OSError: it is gone.
    """
    path, inner = (image.path, image.inner) if isinstance(image, StoredImage) else (image, ())
    state = path.stat()
    told = repr((str(path.absolute()), inner, state.st_size, state.st_mtime_ns, state.st_ctime_ns))
    return int.from_bytes(hashlib.blake2b(told.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def _note(folder: Path) -> Path:
    folder = Path(folder)
    return folder.with_name(f".{folder.name}.known.npy")

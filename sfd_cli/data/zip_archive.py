"""Images in a zip file, by their names in there."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from sfd_cli.data.archives import Inner, Member
from sfd_cli.data.images import is_image
from sfd_cli.errors import UserError

OPEN_AT_ONCE = 64


class ZipArchive:
    """The format `zip`; `inner` is a member's name."""

    def members(self, path: Path) -> Iterator[Member]:
        """See `Archive`."""
        try:
            names = _open(path, path.stat().st_mtime_ns).namelist()
        except (zipfile.BadZipFile, OSError, RuntimeError, ValueError) as error:
            problem = f"{path} cannot be read as a zip file, it may end early ({error})"
            raise UserError("images.folder", problem, "copy it again") from None
        yield from (Member(name, (name,)) for name in sorted(names) if is_image(name))

    def read(self, path: Path, inner: Inner) -> bytes:
        """See `Archive`."""
        try:
            return _open(path, path.stat().st_mtime_ns).read(str(inner[0]))
        # Encrypted members raise a RuntimeError, and those packed in a way that does not exist.
        except (zipfile.BadZipFile, KeyError, RuntimeError, ValueError, EOFError, zlib.error) as error:
            raise OSError(" ".join(str(error).split())) from None


@lru_cache(OPEN_AT_ONCE)
def _open(path: Path, changed: int) -> zipfile.ZipFile:
    """The open file as of this time of change; reading from several threads is zipfile's own care."""
    return zipfile.ZipFile(path)


ZIP = ZipArchive()

"""Checksums of the files of a folder, and whether they still hold: cheaply by size and time, in full on doubt.

Beside a folder lies `.NAME.seen.json`: at which time of change each of its files was found to be whole. It only saves
reading them again, and may be deleted.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from sfd_cli.errors import UserError
from sfd_cli.files import fsync_folder, read_as, write_json
from sfd_cli.messages import say
from sfd_cli.progress import progress

SUMS = "checksums.json"
"""Where a folder that has no record keeps the checksums of its files."""
SLOW = 2**30
"""Bytes of which it is said that they are read, since it takes seconds."""


def _is_inside(name: str) -> str:
    if name.startswith("/") or ".." in name.split("/"):
        raise ValueError("leads out of the folder")
    return name


Checksums = dict[Annotated[str, AfterValidator(_is_inside)], Annotated[str, Field(pattern=r"^\d{1,18} [0-9a-f]{32}$")]]
"""Bytes and BLAKE2b of every file, as `123 0a1b...`, by its path in the folder."""
Seen = dict[str, tuple[int, str]]
"""Time of change, ns, at which a file was whole, and its checksum then, by its path in the folder."""


def checksums_of(folder: Path, names: Iterable[str]) -> Checksums:
    """Checksums of these files, read in as many threads as there are cores."""
    names = sorted(names)
    total = sum((folder / name).stat().st_size for name in names)
    if total > SLOW:
        say(f"reading the {total / 1e9:,.0f} GB of {folder} for their checksums")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda name: _checksum(folder / name), names)
        bar = progress(found, "checksums", len(names), unit="file", silent=total <= SLOW)
        return dict(zip(names, bar, strict=True))


def remember(folder: Path, known: Mapping[str, str]) -> None:
    """Note that the files of a folder are whole as they lie there now."""
    _write_seen(folder, {name: (_modified(folder / name), checksum) for name, checksum in known.items()})


def forget(folder: Path) -> None:
    """Have every file read in full next time: one of them is not what its time of change promises."""
    _note(folder).unlink(missing_ok=True)


def damaged(folder: Path, known: Mapping[str, str]) -> dict[str, str]:
    """What is wrong with the files of a folder, by name, in a glance: nothing with most.

    Only files whose time of change is not the one at which they were seen to be whole are read.
    """
    seen = _read_seen(folder)
    unseen = {
        name: checksum
        for name, checksum in known.items()
        if not (folder / name).is_file() or seen.get(name) != (_modified(folder / name), checksum)
    }
    wrong = differing(folder, unseen)
    if unseen.keys() - wrong.keys():
        whole = [name for name in known if name not in wrong]
        _write_seen(folder, {name: (_modified(folder / name), known[name]) for name in whole})
    return wrong


def differing(folder: Path, known: Mapping[str, str]) -> dict[str, str]:
    """What is wrong with the files of a folder, by name; all are read."""
    wrong = {}
    for name, checksum in known.items():
        path, size = folder / name, int(checksum.split()[0])
        if not path.is_file():
            wrong[name] = "is missing"
        elif path.stat().st_size != size:
            wrong[name] = f"has {path.stat().st_size:,} bytes instead of {size:,}"
    found = checksums_of(folder, known.keys() - wrong.keys())
    return wrong | {name: "is not what was written" for name in found if found[name] != known[name]}


def put_in_place(temporary: Path, target: Path) -> None:
    """Give a folder of files its checksums, force it to the disk and rename it, over an older `target` if there is one.

    A kill leaves `target` as it was, absent, or whole.
    """
    write_json(temporary / SUMS, checksums_of(temporary, [path.name for path in temporary.iterdir()]))
    for path in temporary.iterdir():
        with open(path, "rb+") as file:
            os.fsync(file.fileno())
    fsync_folder(temporary)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    fsync_folder(target.parent)


def damaged_by_own(folder: Path) -> dict[str, str]:
    """What is wrong with the files of a folder that keeps its checksums itself; nothing where it keeps none.

    All are read.

    Raises:
        UserError: the checksums are damaged.
    """
    return differing(folder, read_as(Checksums, folder / SUMS)) if (folder / SUMS).exists() else {}


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
        return f"{os.fstat(file.fileno()).st_size} {digest}"


def _modified(path: Path) -> int:
    return path.stat().st_mtime_ns


def _note(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.seen.json")


def _read_seen(folder: Path) -> Seen:
    try:
        return read_as(Seen, _note(folder))
    except UserError:  # there is none, or it is damaged
        return {}


def _write_seen(folder: Path, seen: Seen) -> None:
    with suppress(OSError):  # where nothing can be written, all is read again next time
        write_json(_note(folder), seen)

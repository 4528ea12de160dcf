"""Files that are either whole or absent, and fingerprints of what made them."""

from __future__ import annotations

import hashlib
import json
import os
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from sfd_cli.errors import UserError

AGAIN = "bring back a whole copy, or make it again by its stage"
# What zipfile and NumPy are known to raise on damaged archives of arrays.
DAMAGED_ARCHIVE = (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError, TypeError, SyntaxError)
DIRECTORY_LAG = 65.0
"""Seconds; NFS trusts what it knows of a folder for at most 60 (`acdirmax`)."""
T = TypeVar("T")


def fingerprint(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`: equal settings give equal fingerprints."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_folder(folder: Path) -> None:
    """Make the renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def appears(is_there: Callable[[], bool], folder: Path, seconds: float | None = None) -> bool:
    """Whether something that another machine has written to `folder` is there, or is before a minute is over.

    Network file systems (NFS) keep for so long what they have looked up in a folder, also that something is not there.
    """
    until = time.monotonic() + (DIRECTORY_LAG if seconds is None else seconds)
    while not is_there():
        if time.monotonic() >= until:
            return False
        time.sleep(0.5)
        with suppress(OSError):
            os.listdir(folder)  # which asks the server
    return True


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; on success fsync it and rename it over `path`.

    A reader sees the old file or the new one, never half of either. On an exception the
    temporary file is removed and `path` is left as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with a final newline, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, default=str) + "\n")


def read_json(path: Path, remedy: str = AGAIN) -> Any:
    """Read a JSON file; `remedy` is what to do about a damaged one.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(path, "does not exist", "check the path") from None
    except RecursionError:
        raise UserError(path, "is not valid JSON (nested too deep)", remedy) from None
    except ValueError as error:  # no JSON, no UTF-8, or a number of thousands of digits
        raise UserError(path, f"is not valid JSON ({error})", remedy) from None


def read_as(kind: type[T], path: Path, remedy: str = AGAIN) -> T:
    """What a JSON file holds, as a value of this type: a class of pydantic, or `list[int]`, `dict[str, float]` ...

    Raises:
        UserError: the file is missing, is not JSON, or holds something else; says where.
    """
    return parsed(kind, read_json(path, remedy), path, remedy)


def parsed(kind: type[T], found: Any, path: Path, remedy: str = AGAIN) -> T:
    """`found`, which the file at `path` holds, as a value of this type.

    Raises:
        UserError: it is something else; says where.
    """
    try:
        # As JSON, where a class of pydantic is told by its fields, and no text is taken for a number.
        return TypeAdapter(kind).validate_json(json.dumps(found), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"])
        raise UserError(path, f"is damaged ({where}{first['msg'].lower()})", remedy) from None


def read_yaml(path: Path) -> Any:
    """Read a YAML file; None where it is empty.

    Raises:
        UserError: the file is missing, is not YAML, or names a key twice in one place; says the lines.
    """
    try:
        return yaml.load(Path(path).read_text(), _EveryKeyOnce)
    except FileNotFoundError:
        raise UserError(path, "does not exist", "check the path") from None
    except _TwiceError as error:
        problem = f"names {error.key!r} twice, in lines {error.lines[0]} and {error.lines[1]}"
        raise UserError(path, problem, "keep one of them") from None
    except RecursionError:
        raise UserError(path, "is not valid YAML (nested too deep)", "correct it") from None
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: no UTF-8, or a number of thousands of digits
        raise UserError(path, f"is not valid YAML ({' '.join(str(error).split())})", "correct it") from None


class _TwiceError(Exception):
    """A key stands twice in one mapping, in `lines`, counted from 1."""

    def __init__(self, key: str, lines: tuple[int, int]) -> None:
        super().__init__(key, lines)
        self.key, self.lines = key, lines


class _EveryKeyOnce(yaml.SafeLoader):
    """YAML's plain values; PyYAML itself takes the last of two equal keys without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """The mapping as it stands in the file, before `<<` merges others into it, which it may override."""
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, Any], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in lines:
                raise _TwiceError(key.value, (lines[name], line))
            lines[name] = line
        return node

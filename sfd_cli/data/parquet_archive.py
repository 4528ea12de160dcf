"""Images in a Parquet file with a column of images and one of labels, as the Hugging Face hub ships data sets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from sfd_cli.data.archives import Inner, Member
from sfd_cli.errors import UserError

IMAGES, LABELS = ("image", "img", "jpg", "png"), ("label", "labels", "cls", "class", "fine_label")
# Rows are read by groups, of a hundred images as the hub writes them.
GROUPS_KEPT = 8


class ParquetArchive:
    """The format `parquet`; `inner` is a row group and a row in it."""

    def members(self, path: Path) -> Iterator[Member]:
        """See `Archive`. A label is a number, with the class's name behind it where the file tells that."""
        file = _open(path)
        _column(path, file, IMAGES, "images")
        column = _column(path, file, LABELS, "labels")
        names = _class_names(file, column)
        number = 0
        for group in range(file.num_row_groups):
            for row, value in enumerate(_read_group(path, file, group, column).to_pylist()):
                yield Member(f"{path.stem}-{number:07d}", (group, row), _label(path, number, value, names))
                number += 1

    def read(self, path: Path, inner: Inner) -> bytes:
        """See `Archive`."""
        group, row = (int(part) for part in inner)
        with _LOCK:
            value = _rows(path, path.stat().st_mtime_ns, group)[row].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise OSError("the row has no bytes of an image")
        return content


_LOCK = Lock()


@lru_cache(GROUPS_KEPT)
def _rows(path: Path, changed: int, group: int) -> Any:
    """The images of a row group of the file as of this time of change."""
    try:
        file = _open(path)
        column = _column(path, file, IMAGES, "images")
        return _read_group(path, file, group, column)
    except UserError as error:
        raise OSError(str(error)) from None


def _open(path: Path) -> Any:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        problem = f"{path} is a Parquet file, which needs the package pyarrow"
        raise UserError("images.folder", problem, "install with `pip install 'sfd-cli[parquet]'`") from None
    try:
        return parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def _read_group(path: Path, file: Any, group: int, column: str) -> Any:
    """One column of a group of rows."""
    import pyarrow

    try:
        return file.read_row_group(group, [column])[column]
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    problem = f"{path} cannot be read as a Parquet file, it may end early ({' '.join(str(error).split())})"
    return UserError("images.folder", problem, "copy it again")


def _column(path: Path, file: Any, known: tuple[str, ...], what: str) -> str:
    names = file.schema_arrow.names
    found = next((name for name in known if name in names), None)
    if found is None:
        problem = f"{path} has no column of {what} (columns: {', '.join(names)})"
        raise UserError("images.folder", problem, f"call it {known[0]}")
    return found


def _class_names(file: Any, column: str) -> list[str]:
    """What `datasets` notes in a file that it writes; nothing in others."""
    noted = (file.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    try:
        names = json.loads(noted)["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def _label(path: Path, row: int, value: Any, names: list[str]) -> int | str:
    if isinstance(value, str) and value:
        return value.replace("/", "-")
    if not isinstance(value, int) or value < 0:
        raise UserError(
            "images.folder", f"{path} has no label in row {row} ({value})", "name a file of labelled images"
        )
    if value < len(names):
        # The number first, so that classes keep their order; of synonyms the first.
        word = "-".join(names[value].split(",")[0].lower().replace("/", " ").split())
        return f"{value:0{len(str(len(names) - 1))}d}-{word}"
    return value


PARQUET = ParquetArchive()

"""The records of artifacts, as tests look at them and write them by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sfd_cli.artifacts.recipe import COPY, SETTINGS, Record
from sfd_cli.checksums import checksums_of

RECORDS = [COPY, SETTINGS]
"""The files of a record, sorted."""


def accept(folder: Path) -> None:
    """Take an artifact's files as they are now for what its stage wrote."""
    record = Record.read(folder)
    assert record is not None
    replace(record, files=checksums_of(folder, record.files)).write(folder)

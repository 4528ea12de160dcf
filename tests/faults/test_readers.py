"""Every reader of a file, on damaged files: the same value or a clear error, never a bare exception, and never another
value where there is a checksum."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from damage import DAMAGES, Damage
from hypothesis import HealthCheck, given, settings
from ledger import Ledger
from readers import READERS, Reader

from sfd_cli.errors import SfdError

FEW, MANY = 12, int(os.environ.get("SFD_FAULT_EXAMPLES", "1000"))
SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]


def outcome(reader: Reader, path: Path) -> tuple[str, Any]:
    """What is read, or the error's sentence; any other exception ends the test."""
    try:
        return "value", json.dumps(reader.read(path), sort_keys=True, default=str)
    except SfdError as error:
        return "error", str(error)


def tried(name: str, folder: Path, damages: Damage, whole: dict[str, Any]) -> str:
    """What becomes of a damaged file: "same", "error", or "another" value where nothing could tell."""
    reader = READERS[name]
    path = whole.setdefault("path", None) or reader.write(folder)
    if "content" not in whole:
        whole.update(path=path, content=path.read_bytes(), value=outcome(reader, path))
        assert whole["value"][0] == "value", whole["value"][1]
    path.write_bytes(damages.to(whole["content"]))
    kind, found = outcome(reader, path)
    if kind == "error":
        return kind
    if found == whole["value"][1]:
        return "same"
    assert not reader.is_checked, f"{name}: {found} instead of {whole['value'][1]}"
    return "another"


@pytest.mark.parametrize("name", READERS)
def test_a_few_damaged_files_are_read_as_they_were_or_named(name: str, tmp_path: Path) -> None:
    whole: dict[str, Any] = {}

    @settings(max_examples=FEW, deadline=None, derandomize=True, database=None, suppress_health_check=SLOW)
    @given(damages=DAMAGES)
    def attempt(damages: Damage) -> None:
        tried(name, tmp_path, damages, whole)

    attempt()


CENTRAL = b"PK\x01\x02"
"""Begins the entry of a member in a zip file's directory."""


@pytest.mark.parametrize(
    ("name", "offset", "value"),
    [("zip", 6, 84), ("zip", 10, 93), ("npz", 6, 84), ("npz", 10, 93), ("surface.npz", 10, 93)],
)
def test_a_member_packed_in_a_way_that_does_not_exist_is_damage(
    name: str, offset: int, value: int, tmp_path: Path
) -> None:
    """A version or a method of compression that zipfile does not know, which it tells by NotImplementedError."""
    path = READERS[name].write(tmp_path)
    content = bytearray(path.read_bytes())
    content[content.index(CENTRAL) + offset] = value
    path.write_bytes(content)
    kind, said = outcome(READERS[name], path)
    assert (kind == "error" and str(path) in said) or "corrupt" in said


def test_an_npz_behind_other_bytes_is_read_or_named(tmp_path: Path) -> None:
    """zipfile finds its directory all the same, and numpy.load takes it for pickled objects."""
    path = READERS["npz"].write(tmp_path)
    whole = outcome(READERS["npz"], path)
    path.write_bytes(b"\0" + path.read_bytes())
    assert outcome(READERS["npz"], path) == whole


@pytest.mark.faults
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_files_are_read_as_they_were_or_named(name: str, tmp_path: Path, ledger: Ledger) -> None:
    whole: dict[str, Any] = {}
    counted = {"same": 0, "error": 0, "another": 0}

    @settings(max_examples=MANY, deadline=None, database=None, suppress_health_check=SLOW)
    @given(damages=DAMAGES)
    def attempt(damages: Damage) -> None:
        counted[tried(name, tmp_path, damages, whole)] += 1

    wrong = []
    try:
        attempt()
    except BaseException as error:
        wrong.append(f"{name}: {type(error).__name__} {error}")
    ledger.note(
        "a damaged file, to each of its readers" if READERS[name].is_checked else "a damaged file without a checksum",
        tried=sum(counted.values()),
        wrong=wrong,
    )

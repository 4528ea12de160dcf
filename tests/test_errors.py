"""Errors have three fields, and every one that is raised says at least what it is about and what is wrong."""

from __future__ import annotations

import ast
import errno
from pathlib import Path

import pytest
from safetensors import SafetensorError

from sfd_cli.cli.terminal import friendly_errors
from sfd_cli.errors import SfdError, StageFailure, UserError

PACKAGE = Path(__file__).parents[1] / "sfd_cli"


def errors_made() -> list[tuple[str, ast.Call]]:
    """Place and call of every error with fields that the package makes."""
    return [
        (f"{path.relative_to(PACKAGE)}:{node.lineno}", node)
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("UserError", "StageFailure", "SettingError")
    ]


def test_every_error_says_what_is_wrong() -> None:
    made = errors_made()
    assert len(made) > 100
    assert [place for place, call in made if len(call.args) + len(call.keywords) < 2] == []
    empty = [place for place, call in made if isinstance(call.args[1], ast.Constant) and not call.args[1].value]
    assert empty == []


@pytest.mark.parametrize("kind", [UserError, StageFailure])
def test_an_error_is_its_fields_and_reads_as_one_sentence(kind: type[SfdError]) -> None:
    error = kind(Path("models/dit"), "is missing", "run `sfd train`")
    assert (error.subject, error.problem, error.remedy) == ("models/dit", "is missing", "run `sfd train`")
    assert str(error) == "models/dit: is missing; run `sfd train`"
    assert str(kind("dit", "is missing")) == "dit: is missing"


@pytest.mark.parametrize(
    ("error", "subject"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "data/x.h5"), "data/x.h5"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "data/x.h5"), "data/x.h5"),
        (OSError(errno.EFBIG, "File too large"), "the disk"),
        (
            OSError("Can't write data (file write failed: errno = 28, error message = 'No space left on device')"),
            "the disk",
        ),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "the disk"),
    ],
    ids=["disk", "quota", "length of a file", "HDF5", "safetensors"],
)
def test_no_room_is_told_as_that_whoever_wrote(error: Exception, subject: str) -> None:
    @friendly_errors
    def command() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        command()
    assert ended.value.code == 1
    told = ended.value.__cause__
    assert isinstance(told, StageFailure)
    assert told.subject == subject
    assert told.problem.startswith("is full")
    assert told.remedy

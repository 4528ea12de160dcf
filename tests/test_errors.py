"""Errors have three fields, and every one that is raised says at least what it is about and what is wrong."""

from __future__ import annotations

import ast
import errno
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from sfd_cli.cli.terminal import friendly_errors
from sfd_cli.config import Settings
from sfd_cli.errors import SfdError, StageFailure, UserError
from sfd_cli.memory import is_out_of_memory, memory_told
from sfd_cli.tables import STAGES

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


GPU = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.25 GiB is free."
)
HOST = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
FULL_MEMORY = {
    "of a GPU": (torch.OutOfMemoryError(GPU), "device", "2.00 GiB"),
    "of another device": (
        RuntimeError("NPU out of memory. Tried to allocate 20.00 MiB (NPU 0)"),
        "device",
        "20.00 MiB",
    ),
    "of a library's handle": (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "device", ""),
    "PyTorch's on a CPU": (RuntimeError(f"{HOST} 4000000 bytes. Error code 12"), "machine", "4000000 bytes"),
    "NumPy's": (MemoryError("Unable to allocate 71.1 PiB for an array with shape (9,)"), "machine", "71.1 PiB"),
    "Python's": (MemoryError(), "machine", ""),
    "the system's": (OSError(errno.ENOMEM, "Cannot allocate memory"), "machine", ""),
}


@pytest.mark.parametrize(("error", "whose", "size"), FULL_MEMORY.values(), ids=FULL_MEMORY)
def test_memory_that_runs_out_is_told_as_that_whoever_wanted_it(error: Exception, whose: str, size: str) -> None:
    assert is_out_of_memory(error)
    with pytest.raises(StageFailure) as told, memory_told("sfd train", "lower dit.batch_size"):
        raise error
    assert told.value.subject == "sfd train"
    assert f"the {whose}'s memory" in told.value.problem
    assert told.value.problem.endswith(size or "memory")
    assert told.value.remedy == "lower dit.batch_size"


def test_real_allocations_that_are_too_large_are_known_as_such() -> None:
    for allocate in (lambda: torch.empty(10**15), lambda: np.empty(10**16)):
        with pytest.raises(Exception, match="allocate") as raised:
            allocate()
        assert is_out_of_memory(raised.value)


@pytest.mark.parametrize("error", [ValueError("out of memory"), RuntimeError("shapes"), OSError(errno.ENOSPC, "full")])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)), memory_told("sfd train"):
        raise error


def test_a_command_that_is_no_stage_tells_of_memory_too() -> None:
    @friendly_errors
    def command() -> None:
        raise torch.OutOfMemoryError(GPU)

    with pytest.raises(SystemExit) as ended:
        command()
    assert ended.value.code == 1
    told = ended.value.__cause__
    assert isinstance(told, StageFailure)
    assert told.remedy


@pytest.mark.parametrize("name", [name for name in STAGES if STAGES[name].relief])
def test_what_a_stage_says_to_change_is_there(name: str) -> None:
    keys = re.findall(r"\b[a-z_]+(?:\.[a-z_]+)+\b", STAGES[name].relief)
    assert keys
    for key in keys:
        section = Settings()
        *outer, last = key.split(".")
        for part in outer:
            section = getattr(section, part)
        assert last in type(section).model_fields, key


def test_every_stage_that_shares_its_work_says_what_to_change() -> None:
    assert [name for name in STAGES if STAGES[name].shares and not STAGES[name].relief] == []

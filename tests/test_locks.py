"""File systems without locks: a line says so once, and the work is done; where there are locks, they are kept."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from produced import run, writing
from tiny_project import tiny_settings

from sfd_cli import locks
from sfd_cli.studies.pipeline import alone
from sfd_cli.trackers.identity import held
from sfd_cli.trackers.logged import Logged
from sfd_cli.weights.fetch import sole_writer

SAID = "no locks on this file system"
WITHOUT = sorted({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK})


@pytest.fixture(autouse=True)
def untold() -> Iterator[None]:
    locks._told.clear()
    yield
    locks._told.clear()


def without_locks(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(file: Any, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("number", WITHOUT)
def test_an_artifact_is_made_where_there_are_no_locks_and_a_line_says_so_once(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_locks(monkeypatch, number)
    assert run(tmp_path, writing("file"), seed=0) == {"count": 3}
    run(tmp_path, writing("file"), seed=1)
    said = capsys.readouterr().err
    assert said.count(SAID) == 1
    assert f"{tmp_path}: {SAID} ({os.strerror(number)})" in said


@pytest.mark.parametrize("number", WITHOUT)
def test_every_other_lock_does_without_too(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_locks(monkeypatch, number)
    with sole_writer(tmp_path / "cache" / "weights.pt"), alone(tmp_path / "studies" / "lock"):
        pass
    with held(Logged(tiny_settings(tmp_path), "dit")) as is_held:
        assert is_held
    assert capsys.readouterr().err.count(SAID) == 3


def test_what_else_a_system_answers_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_locks(monkeypatch, errno.EIO)
    with open(tmp_path / "lock", "w") as file, pytest.raises(OSError, match=os.strerror(errno.EIO)):
        locks.take(file)


def test_a_lock_is_had_by_one_at_a_time(tmp_path: Path) -> None:
    with open(tmp_path / "lock", "w") as first, open(tmp_path / "lock", "w") as second:
        assert locks.take(first)
        assert not locks.take(second, wait=False)
        first.close()
        assert locks.take(second, wait=False)


STORE = """
import sys
from pathlib import Path
import numpy as np
from sfd_cli.data.shards import StoreWriter
from sfd_cli.data.store import Field, Store
from sfd_cli.locks import take

folder = Path(sys.argv[1])
folder.mkdir()
with open(folder / ".lock", "w") as lock:
    assert take(lock)
writer = StoreWriter(folder, {"tokens": Field((2, 3))}, 2, 1, "f")
for shard in range(2):
    writer.write_shard(shard, {"tokens": np.full((1, 2, 3), shard, np.float16)})
writer.finish([0, 1], ["a", "b"], [0, 1], ["x", "y"])
assert Store(folder).read("tokens", [1]).sum() == 6
"""


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler to make a flock that answers otherwise")
@pytest.mark.parametrize("number", WITHOUT)
def test_stores_are_written_and_read_where_the_system_has_no_locks(number: int, tmp_path: Path) -> None:
    """HDF5 asks for locks by itself, beside us."""
    source, library = tmp_path / "flock.c", tmp_path / "flock.so"
    source.write_text(f"#include <errno.h>\nint flock(int file, int what) {{ errno = {number}; return -1; }}\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    variables = {name: value for name, value in os.environ.items() if name != "HDF5_USE_FILE_LOCKING"}
    variables |= {"LD_PRELOAD": str(library), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", STORE, str(tmp_path / "store")]
    ran = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count(SAID) == 1

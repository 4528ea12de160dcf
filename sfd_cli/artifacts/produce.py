"""The one driver of everything that a stage leaves behind: locked, fingerprinted, resumed or started afresh."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from sfd_cli.artifacts.damage import damage, told
from sfd_cli.artifacts.earlier import keep_earlier, remove_earlier
from sfd_cli.artifacts.recipe import COPY, SETTINGS, UNDER_DVC, Facts, Recipe, Record, checkpoints_of, is_record
from sfd_cli.checksums import checksums_of, damaged, remember
from sfd_cli.distributed.processes import Processes
from sfd_cli.errors import StageFailure, UserError
from sfd_cli.files import appears, read_as, write_json
from sfd_cli.locks import take
from sfd_cli.messages import say

LEFTOVER = ".*.tmp"
"""What a killed run leaves half written."""

L = TypeVar("L")


def produce(
    recipe: Recipe,
    load: Callable[[Processes], L],
    make: Callable[[Processes, L], Facts],
    *,
    metrics: Path | None = None,
    is_done: Callable[[Facts], bool] = lambda facts: True,
    start_over: Callable[[], str | None] = lambda: None,
    can_mend: Callable[[list[str]], bool] = lambda names: False,
    takes_over: bool = False,
    tell: Callable[[Facts], dict[str, Any]] = lambda facts: facts,
) -> dict[str, Any]:
    """Make the artifact of `recipe`, go on with it, or find that it is there already.

    Under torchrun every process calls this alike; rank 0 holds the folder for writing. What was made by another recipe
    is put aside, so that two runs never mix. The order matters: `load` comes before anything is moved or written,
    because bad input must not cost the artifact that was there.

    Args:
        recipe: what decides the artifact's bytes.
        load: opens what `make` needs and may refuse it (UserError). Called once at most, in every process.
        make: does the work in every process, in the folder that holds what an interrupted run of this very recipe
            left; returns the facts to record, of which rank 0's count. JSON-able, equal for equal recipes.
        metrics: folder for the timings (`timings/<command>.json`), outside of the artifact because equal recipes
            must give equal bytes; None for work outside the pipeline.
        is_done: whether a finished artifact with these facts needs no more work; called in rank 0.
        start_over: why an earlier run of this very recipe cannot be continued (a clause that follows the folder's
            name), or None; called in rank 0, if there was such a run.
        can_mend: whether `make` makes files of a finished artifact that are damaged or gone again, exactly, without the
            work of the others; called with their names in rank 0, if there are such files.
        takes_over: whether `make` takes over parts of what other recipes made, see `artifacts.earlier`: what would be
            removed, because DVC's cache has it, is then removed only when this artifact is finished.
        tell: what to return of the finished artifact with these facts; called in rank 0 while the folder is held, for
            a run with other settings may put it aside the moment after.

    Returns:
        What `tell` does, which is the facts if it is not given, in every process.

    Raises:
        UserError: what lies in the folder was not made by this program, its record is damaged, or files are that cannot
            be made again alone; it is left as it is.
    """
    processes = Processes.join()
    loaded = cache(lambda: load(processes))
    own = _own_record(recipe.folder) if processes.is_main else None
    if not processes.broadcast(own is not None and own.fingerprint == recipe.fingerprint):
        loaded()
    # Nor must it be moved where a process could not load, or has something else before it.
    processes.require_same(
        f"sfd {recipe.command}", recipe.settings | {f"input {k}": v for k, v in recipe.inputs.items()}
    )
    with _held(recipe, metrics) if processes.is_main else nullcontext() as folder:
        if folder is not None:
            folder.inspect(can_mend)
        if folder is not None and folder.resumed:
            folder.why_aside = start_over()
        found = None if folder is None or folder.why_aside is not None else folder.facts
        found = processes.broadcast(found if found is not None and is_done(found) else None)
        if found is not None:
            if folder is not None:
                folder.restore_record()
                remove_earlier(recipe.folder)
                say(f"{recipe.folder} is up to date")
                return processes.broadcast(tell(found))
            return processes.broadcast({})
        inputs = loaded()
        _require_shared(recipe.folder.parent, processes)
        if folder is not None:
            folder.make_room(takes_over)
        processes.barrier()
        made = make(processes, inputs)
        processes.barrier()
        if folder is not None:
            folder.finish(made)
            return processes.broadcast(tell(made))
        return processes.broadcast({})


def _require_shared(folder: Path, processes: Processes) -> None:
    """Raise StageFailure unless all processes see what the first one writes to this folder."""
    if processes.count == 1:
        return
    sign = folder / f".{os.urandom(8).hex()}.tmp"
    if processes.is_main:
        sign.touch()
    seen = folder / processes.broadcast(sign.name)

    def look() -> None:
        if not appears(seen.exists, folder):
            problem = f"process {processes.rank} ({socket.gethostname()}) does not see there what the first one writes"
            raise StageFailure(folder.absolute(), problem, "put the project on a file system that all machines share")

    try:
        processes.agree(look)
    finally:
        sign.unlink(missing_ok=True)


def _own_record(folder: Path) -> Record | None:
    """The record of what lies in a folder that is to be written; None where nothing does.

    Raises:
        UserError: something lies there that sfd did not make, or whose record is damaged.
    """
    record = Record.read(folder)
    if record is None and folder.exists():
        if not folder.is_dir():
            raise UserError(folder, "is a file, and a folder is to be written", "give another path")
        strange = any(not path.match(LEFTOVER) for path in folder.iterdir())
        # Another process may have begun it since the first look; the record is the first that it writes.
        if strange and (record := Record.read(folder)) is None:
            problem = "holds files that this program did not make"
            raise UserError(folder, problem, "give another path, or move them away")
    return record


@contextmanager
def _held(recipe: Recipe, metrics: Path | None) -> Iterator[_Folder]:
    """The artifact's folder, locked: a stage orphaned by a killed `dvc repro` may still be writing there."""
    path = recipe.folder
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / f".{path.name}.lock", "w") as lock:
        if not take(lock, wait=False):
            say(f"another process is writing {path}; waiting for it to end")
            take(lock)
        yield _Folder(recipe, metrics)


class _Folder:
    """The folder of an artifact, this process's to write; nothing in it changes before `make_room`.

    Attributes:
        facts: of the finished artifact of this very recipe with all its files; None where there is none.
        resumed: something of this very recipe was there, finished or not.
        why_aside: why what is there is not gone on with (a clause that follows the folder's name); None if it is.
    """

    def __init__(self, recipe: Recipe, metrics: Path | None) -> None:
        self.recipe, self.path = recipe, recipe.folder
        self._record = record = _own_record(self.path)
        self.resumed = record is not None and record.fingerprint == recipe.fingerprint
        self._timings = None if metrics is None else Path(metrics) / "timings" / f"{recipe.command}.json"
        self._started = time.monotonic()
        self._damaged: list[str] = []
        self.facts: Facts | None = None
        self.why_aside: str | None = None
        if record is not None and not self.resumed:
            self.why_aside = f"was made by other settings ({', '.join(recipe.changes_from(record))})"
            if record.stage != recipe.command:
                self.why_aside = f"was made by another stage ({record.stage or 'unknown'})"

    def inspect(self, can_mend: Callable[[list[str]], bool]) -> None:
        """Look whether a finished artifact of this recipe has all its files, and they are whole.

        Raises:
            UserError: some are not, and cannot be made again alone.
        """
        record = self._record
        if record is None or not (self.resumed and record.complete):
            return
        if not record.files:  # of an older version
            wrong = {} if record.contents == self._contents() else {"": "has lost or changed some of its files"}
        else:
            wrong = damaged(self.path, record.files)
        if not wrong:
            self.facts = record.facts
        elif record.files and not can_mend([*wrong]):
            raise damage(self.path, wrong, f"move {self.path} away to make it again")
        else:
            self._damaged = [name for name in wrong if name]
            say(f"{told(self.path, wrong)}; making again what is missing")

    def make_room(self, takes_over: bool) -> None:
        """Put aside what is not gone on with, and note that this recipe is being made."""
        if self.why_aside is not None:
            assert self._record is not None
            self._put_aside(self._record, self.why_aside, takes_over)
            self.facts, self.resumed = None, False
        if not self.resumed:
            # Of a run whose artifact is gone.
            shutil.rmtree(self.recipe.checkpoints, ignore_errors=True)
            if self._timings is not None:
                self._timings.unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        for leftover in list(self.path.rglob(LEFTOVER)):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
        for name in self._damaged:
            (self.path / name).unlink(missing_ok=True)
        if self.facts is None:
            Record.of(self.recipe, {}, None).write(self.path)
        self.restore_record()

    def restore_record(self) -> None:
        """Write the record again where it was read from its copy."""
        if self.resumed and self._record is not None and not is_record(self.path / SETTINGS):
            self._record.write(self.path)
            say(f"{self.path / SETTINGS} was damaged or gone; it is brought back from its copy")

    def finish(self, facts: Facts) -> None:
        """Mark the artifact whole."""
        files = checksums_of(self.path, self._names())
        remember(self.path, files)
        Record.of(self.recipe, facts, files).write(self.path)
        self.facts = facts
        remove_earlier(self.path)
        if self._timings is not None:
            self._add_timing(self._timings)

    def _add_timing(self, path: Path) -> None:
        """Note how long this run took behind those before it; timings that are damaged begin anew."""
        try:
            segments = read_as(list[dict[str, Any]], path) if path.exists() else []
        except UserError as error:
            say(f"timings are lost: {error}")
            segments = []
        segments.append({"seconds": round(time.monotonic() - self._started, 2), "resumed": self.resumed})
        write_json(path, segments)

    def _names(self) -> list[str]:
        """The files of the artifact, without its record."""
        found = (path.relative_to(self.path) for path in self.path.rglob("*") if path.is_file())
        return [path.as_posix() for path in found if path.name not in (SETTINGS, COPY)]

    def _contents(self) -> dict[str, int]:
        """How many files it has and their bytes."""
        sizes = [(self.path / name).stat().st_size for name in self._names()]
        return {"files": len(sizes), "bytes": sum(sizes)}

    def _put_aside(self, record: Record, why: str, takes_over: bool) -> None:
        """Make room without losing what was there: what a DVC run finished is in DVC's cache, all else is renamed."""
        checkpoints = checkpoints_of(self.path, record.fingerprint)
        if record.complete and record.under_dvc and UNDER_DVC in os.environ:
            if not (takes_over and keep_earlier(self.path)):
                shutil.rmtree(self.path)
            shutil.rmtree(checkpoints, ignore_errors=True)
            say(f"{self.path} {why}; starting afresh (DVC's cache has the old one)")
            return
        aside = self.path.with_name(f"{self.path.name}.{record.fingerprint[:8]}")
        number = 1
        while aside.exists():
            number += 1
            aside = self.path.with_name(f"{self.path.name}.{record.fingerprint[:8]}-{number}")
        self.path.rename(aside)
        if checkpoints.exists():  # so that it can be gone on with there
            kept = checkpoints_of(aside, record.fingerprint)
            kept.parent.mkdir(parents=True, exist_ok=True)
            checkpoints.rename(kept)
        say(f"{self.path} {why}; it is now {aside}, starting afresh")

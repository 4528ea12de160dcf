"""The one driver of everything that a stage leaves behind: locked, fingerprinted, resumed or started afresh."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import TypeVar

from sfd_cli.artifacts.recipe import SETTINGS, UNDER_DVC, Facts, Recipe, Record
from sfd_cli.files import read_json, write_json
from sfd_cli.messages import say
from sfd_cli.processes import Processes

CHECKPOINTS = "checkpoints"

L = TypeVar("L")


def produce(
    recipe: Recipe,
    load: Callable[[Processes], L],
    make: Callable[[Processes, L], Facts],
    *,
    metrics: Path | None = None,
    is_done: Callable[[Facts], bool] = lambda facts: True,
    start_over: Callable[[], str | None] = lambda: None,
) -> Facts:
    """Make the artifact of `recipe`, go on with it, or find that it is there already.

    Under torchrun every process calls this alike; rank 0 holds the folder for writing. What was made by another recipe
    is put aside, so that two runs never mix. The order matters: `load` comes before anything is moved, because bad
    input must not cost the artifact that was there.

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

    Returns:
        The facts, in every process.
    """
    processes = Processes.join()
    loaded = cache(lambda: load(processes))
    if not processes.broadcast(recipe.matches_disk()):
        loaded()
    with _held(recipe, metrics) if processes.is_main else nullcontext() as folder:
        if folder is not None and folder.resumed and (why := start_over()) is not None:
            folder.start_over(why)
        found = folder.facts if folder is not None else None
        found = processes.broadcast(found if found is not None and is_done(found) else None)
        if found is not None:
            if processes.is_main:
                say(f"{recipe.folder} is up to date")
            return found
        made = make(processes, loaded())
        processes.barrier()
        if folder is not None:
            folder.finish(made)
        return processes.broadcast(made)


@contextmanager
def _held(recipe: Recipe, metrics: Path | None) -> Iterator[_Folder]:
    """The artifact's folder, locked: a stage orphaned by a killed `dvc repro` may still be writing there."""
    path = recipe.folder
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / f".{path.name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is writing {path}; waiting for it to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield _Folder(recipe, metrics)


class _Folder:
    """A folder that is this process's to write, with what an interrupted run of the same recipe left in it, or empty.

    Attributes:
        facts: of the finished artifact of this very recipe with all its files; None where there is none.
        resumed: something of this very recipe was there, finished or not.
    """

    def __init__(self, recipe: Recipe, metrics: Path | None) -> None:
        self.recipe, self.path = recipe, recipe.folder
        self.facts: Facts | None = None
        self.resumed = False
        self._timings = None if metrics is None else Path(metrics) / "timings" / f"{recipe.command}.json"
        self._started = time.monotonic()
        self._inspect()
        for leftover in list(self.path.rglob(".*.tmp")):  # of a killed run
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
        if self.facts is None:
            Record.of(recipe, {}, None).write(self.path)

    def start_over(self, why: str) -> None:
        """Put what is there aside and begin with an empty folder."""
        record = Record.read(self.path)
        assert record is not None
        self._put_aside(record, why)
        self.facts, self.resumed = None, False
        Record.of(self.recipe, {}, None).write(self.path)

    def finish(self, facts: Facts) -> None:
        """Mark the artifact whole."""
        Record.of(self.recipe, facts, self._contents()).write(self.path)
        self.facts = facts
        if self._timings is not None:
            segments = read_json(self._timings) if self._timings.exists() else []
            segments.append({"seconds": round(time.monotonic() - self._started, 2), "resumed": self.resumed})
            write_json(self._timings, segments)

    def _inspect(self) -> None:
        """Decide between complete, resumed and fresh from what lies in the folder."""
        record = Record.read(self.path)
        if record is not None and record.fingerprint == self.recipe.fingerprint:
            self.resumed = True
            if record.complete and self._has_all(record):
                self.facts = record.facts
        elif record is not None:
            why = f"was made by other settings ({', '.join(self.recipe.changes_from(record))})"
            if record.stage != self.recipe.command:
                why = f"was made by another stage ({record.stage or 'unknown'})"
            self._put_aside(record, why)
        elif self.path.exists() and any(self.path.iterdir()):
            self._put_aside(Record(fingerprint="unknown"), "was not made by this stage")
        else:
            self._forget_timings()
        self.path.mkdir(parents=True, exist_ok=True)

    def _has_all(self, record: Record) -> bool:
        if record.contents == self._contents():
            return True
        say(f"{self.path} has lost or changed some of its files; making them again")
        return False

    def _contents(self) -> dict[str, int]:
        """How many files the finished artifact has and their bytes, without its record and what resuming needs."""
        files = [
            path
            for path in self.path.rglob("*")
            if path.is_file() and path.name != SETTINGS and CHECKPOINTS not in path.relative_to(self.path).parts
        ]
        return {"files": len(files), "bytes": sum(path.stat().st_size for path in files)}

    def _put_aside(self, record: Record, why: str) -> None:
        """Make room without losing what was there: what a DVC run finished is in DVC's cache, all else is renamed."""
        self._forget_timings()
        if record.complete and record.under_dvc and UNDER_DVC in os.environ:
            shutil.rmtree(self.path)
            self.path.mkdir()
            say(f"{self.path} {why}; starting afresh (DVC's cache has the old one)")
            return
        tag = record.fingerprint[:8] or "unknown"
        aside = self.path.with_name(f"{self.path.name}.{tag}")
        number = 1
        while aside.exists():
            number += 1
            aside = self.path.with_name(f"{self.path.name}.{tag}-{number}")
        self.path.rename(aside)
        self.path.mkdir()
        say(f"{self.path} {why}; it is now {aside}, starting afresh")

    def _forget_timings(self) -> None:
        if self._timings is not None:
            self._timings.unlink(missing_ok=True)

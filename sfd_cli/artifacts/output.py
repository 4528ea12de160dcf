"""The folder a stage writes: fingerprinted, locked against a second writer, resumed or started afresh."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sfd_cli import __version__
from sfd_cli.files import fingerprint, read_json, write_json
from sfd_cli.messages import say

SETTINGS = "settings.json"
CHECKPOINTS = "checkpoints"
# DVC sets this for the commands it runs.
UNDER_DVC = "DVC_STAGE"


class StageOutput:
    """One stage's output folder, held for writing.

    `settings.json` inside it says which stage, which effective settings and which inputs made it, and
    whether it is complete. On entry the folder is locked (a stage orphaned by a killed `dvc repro` may
    still be writing); a folder made by other settings is put aside, so that two runs never mix; and what a
    killed run left under a temporary name is removed.

    Args:
        folder: where the artifact goes.
        stage: the command's name.
        settings: what affects the result, JSON-able; the fingerprint covers it and `inputs`.
        inputs: fingerprints of the artifacts read.
        metrics: the folder for timings (`timings/<stage>.json`), outside the artifact because
            artifacts of equal settings must be equal byte for byte; None for work outside the pipeline.
        inert: settings shown in `settings.json` that only say how far a run goes, such as the number of
            training steps; they are not in the fingerprint and `complete` is the caller's to decide.

    Attributes:
        complete: a finished output of these very settings is there already, with all its files.
        resumed: an output of these very settings was there, finished or not.
        facts: what `finish` was told, now or by the run that finished it.
    """

    def __init__(
        self,
        folder: Path,
        stage: str,
        settings: dict[str, Any],
        inputs: dict[str, str],
        metrics: Path | None,
        inert: dict[str, Any] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.stage = stage
        self.settings = settings
        self.inputs = inputs
        self.inert = inert or {}
        self.fingerprint = fingerprint({"stage": stage, "settings": settings, "inputs": inputs})
        self.complete = False
        self.resumed = False
        self.facts: dict[str, Any] = {}
        self._timings = None if metrics is None else Path(metrics) / "timings" / f"{stage}.json"

    def __enter__(self) -> Self:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.folder.parent / f".{self.folder.name}.lock", "w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is writing {self.folder}; waiting for it to end")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._started = time.monotonic()
        self._inspect()
        for leftover in list(self.folder.rglob(".*.tmp")):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
        if not self.complete:
            self._record(complete=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.close()

    def recorded(self) -> bool:
        """Whether an output of these very settings, finished or not, lies there already.

        Touches nothing: for a stage that checks what it reads before it enters.
        """
        record = self.folder / SETTINGS
        return record.exists() and read_json(record).get("fingerprint") == self.fingerprint

    def start_over(self, why: str) -> None:
        """Put what is there aside and begin with an empty folder; `why` completes "FOLDER ..." for the reader."""
        self._put_aside(read_json(self.folder / SETTINGS), why)
        self.complete = self.resumed = False
        self.facts = {}
        self._record(complete=False)

    def finish(self, **facts: Any) -> None:
        """Mark the output whole; `facts` (JSON-able, deterministic) are kept in `settings.json`."""
        self.facts = facts
        self._record(complete=True)
        self.complete = True
        if self._timings is not None:
            segments = read_json(self._timings) if self._timings.exists() else []
            segments.append({"seconds": round(time.monotonic() - self._started, 2), "resumed": self.resumed})
            write_json(self._timings, segments)

    def _inspect(self) -> None:
        """Decide between complete, resumed and fresh from what lies in the folder."""
        record = self.folder / SETTINGS
        if record.exists():
            found = read_json(record)
            if found.get("fingerprint") == self.fingerprint:
                self.complete = bool(found.get("complete")) and self._has_all(found)
                self.facts = found.get("facts", {})
                self.resumed = True
                return
            if found.get("stage") != self.stage:
                self._put_aside(found, f"was made by another stage ({found.get('stage')})")
            else:
                known = {key: value for key, value in found["settings"].items() if key not in self.inert}
                changes = differences(found | {"settings": known}, {"settings": self.settings, "inputs": self.inputs})
                self._put_aside(found, f"was made by other settings ({', '.join(changes)})")
        elif self.folder.exists() and any(self.folder.iterdir()):
            self._put_aside({}, "was not made by this stage")
        else:
            self._forget_timings()
        self.folder.mkdir(parents=True, exist_ok=True)

    def _has_all(self, found: dict[str, Any]) -> bool:
        if found.get("contents") == self._contents():
            return True
        say(f"{self.folder} has lost or changed some of its files; making them again")
        return False

    def _contents(self) -> dict[str, int]:
        """How many files the finished output has and their bytes, without its record and what resuming needs."""
        files = [
            path
            for path in self.folder.rglob("*")
            if path.is_file() and path.name != SETTINGS and CHECKPOINTS not in path.relative_to(self.folder).parts
        ]
        return {"files": len(files), "bytes": sum(path.stat().st_size for path in files)}

    def _put_aside(self, found: dict[str, Any], why: str) -> None:
        """Make room for a fresh run without losing what was there.

        What a DVC run finished is in DVC's cache, so it can go; anything else is renamed.
        """
        self._forget_timings()
        if found.get("complete") and found.get("under_dvc") and UNDER_DVC in os.environ:
            shutil.rmtree(self.folder)
            self.folder.mkdir()
            say(f"{self.folder} {why}; starting afresh (DVC's cache has the old one)")
            return
        tag = str(found.get("fingerprint", "unknown"))[:8]
        aside = self.folder.with_name(f"{self.folder.name}.{tag}")
        number = 1
        while aside.exists():
            number += 1
            aside = self.folder.with_name(f"{self.folder.name}.{tag}-{number}")
        self.folder.rename(aside)
        self.folder.mkdir()
        say(f"{self.folder} {why}; it is now {aside}, starting afresh")

    def _forget_timings(self) -> None:
        if self._timings is not None:
            self._timings.unlink(missing_ok=True)

    def _record(self, complete: bool) -> None:
        write_json(
            self.folder / SETTINGS,
            {
                "stage": self.stage,
                "version": __version__,
                "fingerprint": self.fingerprint,
                "complete": complete,
                "under_dvc": UNDER_DVC in os.environ,
                "settings": self.settings | self.inert,
                "inputs": self.inputs,
                "facts": self.facts,
                "contents": self._contents() if complete else None,
            },
        )


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`key old -> new` for every setting or input that differs, "unset" where one of both has none."""
    changed = []
    for part in ("settings", "inputs"):
        before, after = old.get(part, {}), new[part]
        for key in [*after, *(key for key in before if key not in after)]:
            if key in before and key in after and fingerprint(before[key]) == fingerprint(after[key]):
                continue
            was, now = (_short(side[key]) if key in side else "unset" for side in (before, after))
            changed.append(f"{key} {was} -> {now}")
    return changed


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:8]}..."

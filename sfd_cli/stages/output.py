"""The folder a stage writes: fingerprinted, locked against a second writer, resumed or started afresh."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sfd_cli import __version__
from sfd_cli.files import fingerprint, read_json, write_json

SETTINGS = "settings.json"


class StageOutput:
    """One stage's output folder, held for writing.

    `settings.json` inside it says which stage, which effective settings and which inputs made it, and
    whether it is complete. On entry the folder is locked (a stage orphaned by a killed `dvc repro` may
    still be writing); a folder made by other settings is put aside, so that two runs never mix.

    Args:
        folder: where the artifact goes.
        stage: the command's name.
        settings: what affects the result, JSON-able; the fingerprint covers it and `inputs`.
        inputs: fingerprints of the artifacts read.
        metrics: the folder for timings (`timings/<stage>.json`), outside the artifact because
            artifacts of equal settings must be equal byte for byte.
        inert: settings shown in `settings.json` that only say how far a run goes, such as the number of
            training steps; they are not in the fingerprint and `complete` is the caller's to decide.

    Attributes:
        complete: a finished output of these very settings is there already.
        resumed: an output of these very settings was there, finished or not.
        facts: what `finish` was told, now or by the run that finished it.
    """

    def __init__(
        self,
        folder: Path,
        stage: str,
        settings: dict[str, Any],
        inputs: dict[str, str],
        metrics: Path,
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
        self._timings = Path(metrics) / "timings" / f"{stage}.json"

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
        if not self.complete:
            self._record(complete=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.close()

    def finish(self, **facts: Any) -> None:
        """Mark the output whole; `facts` (JSON-able, deterministic) are kept in `settings.json`."""
        self.facts = facts
        self._record(complete=True)
        self.complete = True
        segments = read_json(self._timings) if self._timings.exists() and self.resumed else []
        segments.append({"seconds": round(time.monotonic() - self._started, 2), "resumed": self.resumed})
        write_json(self._timings, segments)

    def _inspect(self) -> None:
        """Decide between complete, resumed and fresh from what lies in the folder."""
        record = self.folder / SETTINGS
        if record.exists():
            found = read_json(record)
            if found.get("fingerprint") == self.fingerprint:
                self.complete = bool(found.get("complete"))
                self.facts = found.get("facts", {})
                self.resumed = True
                return
            self._put_aside(found)
        elif self.folder.exists() and any(self.folder.iterdir()):
            self._put_aside({})
        self.folder.mkdir(parents=True, exist_ok=True)

    def _put_aside(self, found: dict[str, Any]) -> None:
        """Make room for a fresh run without losing what other settings made.

        A finished output of a DVC run is in DVC's cache, so it can go; anything else is renamed.
        """
        changed = (
            ", ".join(differences(found, {"settings": self.settings, "inputs": self.inputs})) or "unknown settings"
        )
        if found.get("complete") and "DVC_STAGE" in os.environ:
            shutil.rmtree(self.folder)
            say(f"{self.folder} was made by other settings ({changed}); starting afresh (DVC's cache has the old one)")
            return
        tag = str(found.get("fingerprint", "unknown"))[:8]
        aside = self.folder.with_name(f"{self.folder.name}.{tag}")
        number = 1
        while aside.exists():
            number += 1
            aside = self.folder.with_name(f"{self.folder.name}.{tag}-{number}")
        self.folder.rename(aside)
        say(f"{self.folder} was made by other settings ({changed}); it is now {aside}, starting afresh")

    def _record(self, complete: bool) -> None:
        write_json(
            self.folder / SETTINGS,
            {
                "stage": self.stage,
                "version": __version__,
                "fingerprint": self.fingerprint,
                "complete": complete,
                "settings": self.settings | self.inert,
                "inputs": self.inputs,
                "facts": self.facts,
            },
        )


def say(message: str) -> None:
    """One line to the person at the terminal, on stderr so that results can be piped."""
    print(f"sfd: {message}", file=sys.stderr, flush=True)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`key old -> new` for every setting or input that differs."""
    changed = []
    for part in ("settings", "inputs"):
        before, after = old.get(part, {}), new[part]
        for key, value in after.items():
            if key in before and before[key] != value and fingerprint(before[key]) != fingerprint(value):
                changed.append(f"{key} {_short(before[key])} -> {_short(value)}")
    return changed


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:8]}..."

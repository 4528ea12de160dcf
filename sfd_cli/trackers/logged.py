"""What `metrics/` has of a run: rows of its TSVs as they are written, its pictures, scores and settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfd_cli.artifacts.recipe import Record
from sfd_cli.artifacts.timings import speed_folder
from sfd_cli.config import Settings
from sfd_cli.errors import UserError
from sfd_cli.files import read_as, sha256_file
from sfd_cli.trackers.tracker import Entry

CURVE = "curve"
COMPRESSORS = ("images", "features", "semvae", "texture_vae")
LATENTS = (*COMPRESSORS, "latents", "schedule")
READ = {
    "semvae": ("images", "features"),
    "texture_vae": ("images",),
    "probe": (*COMPRESSORS, "latents"),
    "dit": LATENTS,
    "guide": LATENTS,
    CURVE: (*LATENTS, "dit"),
}
"""The runs, in the order of the pipeline, and the artifacts behind each, by their keys in `paths`."""
STEP, TIME = "step", "timestamp"


@dataclass(frozen=True)
class Logged:
    """Where everything of a run lies."""

    settings: Settings
    key: str

    @property
    def log(self) -> Path:
        """Its folder among the metrics."""
        return self.settings.paths.metrics / self.key

    @property
    def tables(self) -> list[Path]:
        """Its TSVs: a column of steps and one or more of values."""
        if self.key == CURVE:
            return sorted(self.log.glob("*.tsv"))
        folders = (self.log, speed_folder(self.log))
        return [path for folder in folders for path in sorted((folder / "plots" / "metrics").glob("*.tsv"))]

    @property
    def grids(self) -> dict[int, Path]:
        """Grids of samples during training, by the step."""
        return {int(path.stem.removeprefix("step-")): path for path in (self.log / "samples").glob("step-*.png")}

    @property
    def pictures(self) -> dict[str, Path]:
        """Pictures of the finished run by name: reconstructions, and of the transformer the report's samples."""
        found = {path.stem: path for path in sorted(self.log.glob("*.png"))}
        samples = self.settings.paths.reports / "samples.png"
        return found | ({"sampled": samples} if self.key == "dit" and samples.exists() else {})

    @property
    def scores(self) -> dict[str, float]:
        """The numbers of its scores; none where it has not been scored, or the file is damaged."""
        name = "fid" if self.key == "dit" else self.key
        try:
            return numbers(read_as(dict[str, Any], self.settings.paths.metrics / f"{name}.json"))
        except UserError:
            return {}

    @property
    def fingerprint(self) -> str:
        """Of what made it: two runs with equal ones are the same run."""
        if self.key == CURVE:  # whose rows change when there are more repeats
            return "".join(sha256_file(path) for path in self.tables)
        record = _record(self.settings, self.key)
        return "" if record is None else record.fingerprint

    @property
    def made_by(self) -> dict[str, Any]:
        """Settings by `artifact.key`, as the artifacts themselves record them, and the version that made the last."""
        found: dict[str, Any] = {}
        for key in (*READ[self.key], *(() if self.key == CURVE else (self.key,))):
            record = _record(self.settings, key)
            if record is not None:
                found |= {f"{key}.{name}": value for name, value in record.settings.items()}
                found["sfd"] = record.version
        return found


def numbers(scores: Mapping[str, Any]) -> dict[str, float]:
    """What of a file of scores is a number."""
    return {
        name: float(value)
        for name, value in scores.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _record(settings: Settings, key: str) -> Record | None:
    try:
        return Record.read(getattr(settings.paths, key))
    except UserError:
        return None


class NewEntries:
    """What is logged of a run from one look to the next.

    Files are read from where the last look ended, so that the rows themselves are what waits to be sent: nothing is
    kept in memory beside the step that is being written, however long a tracker takes.
    """

    def __init__(self, logged: Logged) -> None:
        self._logged = logged
        self._read: dict[Path, int] = {}
        self._names: dict[Path, list[str]] = {}
        self._open: dict[int, dict[str, float]] = {}
        self._shown: set[int] = set()
        self.last = 0
        """The last step of which something was found."""

    @property
    def names(self) -> set[str]:
        """Of all quantities that were found."""
        return {name for columns in self._names.values() for name in columns} - {STEP, TIME}

    def look(self, until: float = math.inf) -> list[Entry]:
        """All steps up to `until`, which are logged whole, that no earlier look has given; ascending."""
        for path in self._logged.tables:
            self._read_on(path)
        pictures = {
            step: path for step, path in self._logged.grids.items() if step <= until and step not in self._shown
        }
        self._shown |= pictures.keys()
        steps = sorted({step for step in self._open if step <= until} | pictures.keys())
        self.last = max([self.last, *steps])
        return [
            Entry(step, self._open.pop(step, {}), {"samples": pictures[step]} if step in pictures else {})
            for step in steps
        ]

    def finish(self) -> list[Entry]:
        """The same of all there is, the pictures of the finished run with its last step."""
        entries, pictures = self.look(), self._logged.pictures
        if not pictures:
            return entries
        last = entries.pop() if entries else Entry(self.last)
        return [*entries, Entry(last.step, last.values, last.pictures | pictures)]

    def _read_on(self, path: Path) -> None:
        """Take the whole lines behind those that were read."""
        with open(path, "rb") as file:
            file.seek(self._read.get(path, 0))
            lines = file.readlines()
        for line in lines:
            if not line.endswith(b"\n"):  # being written
                break
            self._read[path] = self._read.get(path, 0) + len(line)
            try:
                self._take(path, line.decode().rstrip("\r\n").split("\t"))
            except (ValueError, KeyError):
                raise UserError(path, "is not a log of dvclive", "delete it or train again") from None

    def _take(self, path: Path, cells: list[str]) -> None:
        """A line of a table: its columns, or the values of a step; what is not a number has no value."""
        if path not in self._names:
            self._names[path] = cells
            return
        row = dict(zip(self._names[path], cells, strict=True))
        values = self._open.setdefault(int(float(row[STEP])), {})
        for name, cell in row.items():
            if name not in (STEP, TIME) and cell and not math.isnan(value := float(cell)):
                values[name] = value

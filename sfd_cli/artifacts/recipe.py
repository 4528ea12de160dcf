"""What decides an artifact's bytes, and the record of it, `settings.json`, in the artifact's folder."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from sfd_cli import __version__
from sfd_cli.checksums import Checksums
from sfd_cli.errors import UserError
from sfd_cli.files import fingerprint, parsed, read_json, write_json

SETTINGS = "settings.json"
COPY = ".settings.json"
"""The same record once more: what tells which run an artifact belongs to must not hang on one file."""
CHECKPOINTS = ".checkpoints"
# DVC sets this for the commands it runs.
UNDER_DVC = "DVC_STAGE"

Facts = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """What makes an artifact: two equal recipes make equal bytes.

    Attributes:
        command: name of the command, which is also the name of its timings.
        folder: where the artifact goes.
        settings: settings that decide the result, JSON-able.
        inputs: fingerprints of the artifacts that are read.
        free: settings that are recorded but move the result by rounding at most, or only say how far a run goes.
    """

    command: str
    folder: Path
    settings: dict[str, Any]
    inputs: dict[str, str]
    free: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of command, settings and inputs."""
        return fingerprint({"stage": self.command, "settings": self.settings, "inputs": self.inputs})

    @property
    def checkpoints(self) -> Path:
        """Where a training keeps what it resumes from, beside the artifact: DVC's cache shall not hold that too.

        The name tells the run, for DVC may put the artifact of another one into the folder.
        """
        return checkpoints_of(self.folder, self.fingerprint)

    def matches_disk(self) -> bool:
        """Whether an artifact of this very recipe, finished or not, lies in the folder; touches nothing."""
        record = Record.read(self.folder)
        return record is not None and record.fingerprint == self.fingerprint

    def changes_from(self, record: Record) -> list[str]:
        """`key old -> new` for every setting or input in which `record` differs, "unset" where one of both has none."""
        before = {key: value for key, value in record.settings.items() if key not in self.free}
        return _changes(before, self.settings) + _changes(record.inputs, self.inputs)


@dataclass(frozen=True)
class Record:
    """What `settings.json` says about the artifact in its folder.

    Attributes:
        stage: the command that made it.
        version: of this package.
        fingerprint: of its recipe.
        complete: whether it was finished.
        under_dvc: whether DVC ran the command, so that DVC's cache has the artifact once it is complete.
        settings: those of the recipe, the free ones too.
        inputs: fingerprints of what was read.
        facts: what the command noted.
        contents: number of files and of bytes of the finished artifact; None before.
        files: checksums of its files; none in records from before there were any.
        seal: digest of all of the above; "" in records from before there was one.
    """

    stage: str = ""
    version: str = ""
    # Part of the name of a folder that is put aside.
    fingerprint: Annotated[str, Field(pattern=r"^[\w-]+$")] = ""
    complete: bool = False
    under_dvc: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    facts: Facts = field(default_factory=dict)
    contents: dict[str, int] | None = None
    files: Checksums = field(default_factory=dict)
    seal: str = ""

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """The record in `folder`, by its copy where the first is damaged or gone; None where there is no record.

        Raises:
            UserError: it is damaged, and there is no whole copy.
        """
        path, copy = Path(folder) / SETTINGS, Path(folder) / COPY
        try:
            found = _read(path)
        except UserError:
            if (found := _read_copy(copy)) is None:
                raise
            return found
        return _read_copy(copy) if found is None else found

    @classmethod
    def of(cls, recipe: Recipe, facts: Facts, files: Checksums | None) -> Record:
        """The record of an artifact: complete if there are `files`, be it none of them, else unfinished."""
        sizes = [int(checksum.split()[0]) for checksum in (files or {}).values()]
        return cls(
            stage=recipe.command,
            version=__version__,
            fingerprint=recipe.fingerprint,
            complete=files is not None,
            under_dvc=UNDER_DVC in os.environ,
            settings=recipe.settings | recipe.free,
            inputs=recipe.inputs,
            facts=facts,
            contents=None if files is None else {"files": len(sizes), "bytes": sum(sizes)},
            files=files or {},
        )

    def write(self, folder: Path) -> None:
        """Write `settings.json` and its copy, each atomically and the copy first."""
        content = asdict(replace(self, seal=_seal(self)))
        for name in (COPY, SETTINGS):
            write_json(folder / name, content)


def checkpoints_of(folder: Path, fingerprint: str) -> Path:
    """Folder of the checkpoints of the run that an artifact in `folder` comes from: one of their own for each run."""
    return Path(folder).parent / CHECKPOINTS / Path(folder).name / fingerprint[:16]


def is_record(path: Path) -> bool:
    """Whether a whole record of an artifact is there."""
    try:
        return _read(path) is not None
    except UserError:
        return False


def _read(path: Path) -> Record | None:
    """The record in a file; None where there is no file, or one that tells of something else.

    Raises:
        UserError: it is damaged.
    """
    if not path.exists():
        return None
    remedy = f"bring it back from a copy (`dvc checkout` has what DVC finished), or move {path.parent} away"
    try:
        found = read_json(path, remedy)
    except UserError:
        if not path.exists():  # another process has just put it aside
            return None
        raise
    if isinstance(found, dict) and "fingerprint" not in found:
        return None
    record = parsed(Record, found, path, remedy)
    if record.seal and record.seal != _seal(record):
        written = f"sfd {record.version} wrote it, and this is {__version__}" if record.version != __version__ else ""
        problem = f"is damaged, or was changed by hand (its digest is another{'; ' * bool(written)}{written})"
        raise UserError(path, problem, remedy)
    return record


def _read_copy(path: Path) -> Record | None:
    try:
        return _read(path)
    except UserError:
        return None


def _seal(record: Record) -> str:
    """Digest of a record as it is once it was written as JSON and read again."""
    content = vars(record) | {"seal": ""}  # no copy: a sample folder's record names 50,000 files
    return fingerprint(json.loads(json.dumps(content, default=str)))[:32]


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    changed = []
    for key in [*new, *(key for key in old if key not in new)]:
        if key in old and key in new and fingerprint(old[key]) == fingerprint(new[key]):
            continue
        was, now = (_short(side[key]) if key in side else "unset" for side in (old, new))
        changed.append(f"{key} {was} -> {now}")
    return changed


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:8]}..."

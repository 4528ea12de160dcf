"""What decides an artifact's bytes, and the record of it, `settings.json`, in the artifact's folder."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sfd_cli import __version__
from sfd_cli.errors import UserError
from sfd_cli.files import fingerprint, read_json, write_json

SETTINGS = "settings.json"
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
    """

    stage: str = ""
    version: str = ""
    fingerprint: str = ""
    complete: bool = False
    under_dvc: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    facts: Facts = field(default_factory=dict)
    contents: dict[str, int] | None = None

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """The record in `folder`, None where there is none; what is not of the kind that is written here is left out.

        Raises:
            UserError: it is damaged.
        """
        path = Path(folder) / SETTINGS
        if not path.exists():
            return None
        found = read_json(path)
        if not isinstance(found, dict):
            raise UserError(path, "is not the record of an artifact", "delete it and run its stage again")
        kinds = {key: type(value) for key, value in asdict(cls(contents={})).items()}
        known: dict[str, Any] = {key: found[key] for key, kind in kinds.items() if isinstance(found.get(key), kind)}
        return cls(**known)

    @classmethod
    def of(cls, recipe: Recipe, facts: Facts, contents: dict[str, int] | None) -> Record:
        """The record of an artifact: complete if `contents` is not None, else unfinished."""
        return cls(
            stage=recipe.command,
            version=__version__,
            fingerprint=recipe.fingerprint,
            complete=contents is not None,
            under_dvc=UNDER_DVC in os.environ,
            settings=recipe.settings | recipe.free,
            inputs=recipe.inputs,
            facts=facts,
            contents=contents,
        )

    def write(self, folder: Path) -> None:
        """Write `settings.json`, atomically."""
        write_json(folder / SETTINGS, asdict(self))


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

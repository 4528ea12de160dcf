"""Which run of a tracker a training is: the same one after a resume, another one for other settings."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel

from sfd_cli.errors import UserError
from sfd_cli.files import read_as, write_json
from sfd_cli.locks import take
from sfd_cli.trackers.logged import Logged
from sfd_cli.trackers.tracker import Run

FOLDER = "trackers"
"""Among the metrics; git leaves it out, for what is in there depends on the clock and on this machine."""


class _Known(BaseModel):
    """The id by which the trackers know the run with this fingerprint."""

    fingerprint: str
    id: str


def run_of(logged: Logged) -> Run:
    """The run under which this is sent; its id is drawn once, and drawn again where something else made it."""
    folder = _folder(logged)
    path, fingerprint = folder / f"{logged.key}.json", logged.fingerprint
    try:
        known = read_as(_Known, path)
    except UserError:
        known = None
    if known is None or known.fingerprint != fingerprint:
        known = _Known(fingerprint=fingerprint, id=secrets.token_hex(4))
        write_json(path, known.model_dump())
    section = logged.settings.metrics
    group = section.run or Path.cwd().name
    return Run(known.id, logged.key, group, section.project, folder.absolute(), logged.made_by)


@contextmanager
def held(logged: Logged) -> Iterator[bool]:
    """A block in which no other process sends this run; false where one does already."""
    with open(_folder(logged) / f".{logged.key}.lock", "w") as lock:
        yield take(lock, wait=False)


def _folder(logged: Logged) -> Path:
    folder = logged.settings.paths.metrics / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    ignore = folder / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n")
    return folder

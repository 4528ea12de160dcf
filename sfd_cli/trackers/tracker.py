"""What a tracker is: a place outside of `metrics/` that shows curves; see the table TRACKERS."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sfd_cli.config import Settings
from sfd_cli.errors import UserError
from sfd_cli.tables import TRACKERS

DEFAULT_PROJECT = "sfd"


@dataclass(frozen=True)
class Run:
    """A run as a tracker sees it: one training, or the scores along one.

    Attributes:
        id: of this run alone, and the same after a resume; letters and digits.
        key: dit, guide, probe, semvae, texture_vae or curve.
        group: what the project's runs are called.
        project: to which the run belongs; None: as the tracker's own environment says.
        folder: for files that the tracker keeps on this machine.
        settings: of everything the run was made by, `artifact.key`.
    """

    id: str
    key: str
    group: str
    project: str | None
    folder: Path
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The run's name for people."""
        return f"{self.group} {self.key}"


@dataclass(frozen=True)
class Entry:
    """What was logged of one step: values by the names of their TSVs, and PNG files by name."""

    step: int
    values: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, Path] = field(default_factory=dict)


class Writer(Protocol):
    """A run that is open in a tracker. Any method may raise anything; it is then opened anew, and sent all again."""

    def log(self, entries: Sequence[Entry]) -> None:
        """Send whole steps, ascending; leaves out what the tracker has of this run already."""

    def scores(self, step: int, values: Mapping[str, float]) -> None:
        """Send the scores of the finished run, of `step` steps; those that are there are replaced."""

    def close(self) -> None:
        """Send what is left, and mark the run as ended."""


@dataclass(frozen=True)
class Tracker:
    """A kind of tracker.

    Attributes:
        open: begins a run, or goes on with the one of this id.
        package: which it imports; None where it needs none.
        require: raises UserError where it cannot be used here, e.g. where nobody is logged in; asks no server.
    """

    open: Callable[[Run], Writer]
    package: str | None = None
    require: Callable[[], None] = lambda: None


def require_tracker(name: str, subject: str = "metrics.trackers") -> Tracker:
    """The tracker of this name, which can be used here.

    Raises:
        SettingError: there is none of this name.
        UserError: its package is not installed, or it lacks something else.
    """
    TRACKERS.require(name)
    tracker: Tracker = TRACKERS[name]
    if tracker.package is not None and importlib.util.find_spec(tracker.package) is None:
        problem = f"{name!r} needs the package {tracker.package}, which is not installed"
        raise UserError(subject, problem, f'`pip install "sfd-cli[{name}]"`, or leave it out')
    tracker.require()
    return tracker


def require_trackers(settings: Settings) -> None:
    """Check that every tracker of the settings can be used, before anything is written.

    Raises:
        UserError: one cannot; says why.
    """
    for name in settings.metrics.trackers:
        require_tracker(name)

"""What grows: names that settings may use, and where the thing behind each name is defined.

A new solver, law, metric, image source, compressor, format or stage is one entry here (or in the entry points
of another package) and the code it points to. Nothing is imported before it is asked for, so that settings are
checked and `--help` is printed without loading PyTorch. Presets are files: the folder `presets` is their table.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any


class Table:
    """Names and the places `module:attribute` of what they stand for.

    Entry points of the group `sfd.<group>` that other packages declare are part of it.

    Args:
        what: what an entry is called in messages, e.g. "solver".
        group: of the entry points.
        entries: name -> `module:attribute`.
    """

    def __init__(self, what: str, group: str, entries: dict[str, str]) -> None:
        self.what = what
        self._group = f"sfd.{group}"
        self._places: dict[str, Any] = dict(entries)
        self._asked_others = False

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __contains__(self, name: object) -> bool:
        return name in self._all()

    def __getitem__(self, name: str) -> Any:
        """What `name` stands for, imported now.

        Raises:
            ValueError: no such name; says the nearest.
        """
        place = self._all()[self.require(name)]
        if not isinstance(place, str):
            return place
        module, _, attribute = place.partition(":")
        return getattr(import_module(module), attribute)

    def require(self, name: str) -> str:
        """The name itself, if it is in the table; for validating settings.

        Raises:
            ValueError: it is not; says the nearest.
        """
        known = self._all()
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
            raise ValueError(f"no {self.what} is called {name!r}; {hint}")
        return name

    def add(self, name: str, thing: Any) -> None:
        """Enter `thing`, or the place `module:attribute` where it is, under a new name."""
        if name in self._all():
            raise ValueError(f"a {self.what} is called {name!r} already")
        self._places[name] = thing

    def remove(self, name: str) -> None:
        """Take an entry out again."""
        del self._places[name]

    def _all(self) -> dict[str, Any]:
        if not self._asked_others:
            self._asked_others = True
            for point in entry_points(group=self._group):
                self._places.setdefault(point.name, point.value)
        return self._places


SCHEDULES = Table(
    "schedule law",
    "schedules",
    {
        "offset": "sfd_cli.diffusion.schedule:AsynchronousSchedule",
    },
)

SOLVERS = Table(
    "solver",
    "solvers",
    {
        "euler": "sfd_cli.diffusion.solver:euler",
        "heun": "sfd_cli.diffusion.solver:heun",
        "ab2": "sfd_cli.diffusion.solver:ab2",
        "ab3": "sfd_cli.diffusion.solver:ab3",
        "dopri5": "sfd_cli.diffusion.solver:dopri5",
    },
)

IMAGE_SOURCES = Table(
    "image source",
    "image_sources",
    {
        "openmoji": "sfd_cli.data.openmoji:openmoji",
        "folder": "sfd_cli.data.image_folder:image_folder",
    },
)

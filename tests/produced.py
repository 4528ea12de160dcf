"""A stage in miniature, made through the driver of artifacts, that can be killed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sfd_cli.artifacts.produce import produce
from sfd_cli.artifacts.recipe import Facts, Recipe

Make = Callable[[Path], Facts]


class Killed(Exception):
    """What ends a run in the middle."""


def recipe(root: Path, free: dict[str, Any] | None = None, command: str = "demo-stage", **settings: Any) -> Recipe:
    return Recipe(command, root / "artifact", settings, {"images": "abc"}, free or {})


def run(
    root: Path,
    make: Make,
    load: Callable[[], Any] = lambda: None,
    free: dict[str, Any] | None = None,
    command: str = "demo-stage",
    is_done: Callable[[Facts], bool] = lambda facts: True,
    start_over: Callable[[], str | None] = lambda: None,
    can_mend: Callable[[list[str]], bool] = lambda names: False,
    takes_over: bool = False,
    tell: Callable[[Facts], dict[str, Any]] = lambda facts: facts,
    **settings: Any,
) -> Facts:
    made = recipe(root, free, command, **settings)
    return produce(
        made,
        lambda processes: load(),
        lambda processes, loaded: make(made.folder),
        metrics=root / "metrics",
        is_done=is_done,
        start_over=start_over,
        can_mend=can_mend,
        takes_over=takes_over,
        tell=tell,
    )


def writing(name: str) -> Make:
    """Work that writes a file."""

    def make(folder: Path) -> Facts:
        (folder / name).write_text(name)
        return {"count": 3}

    return make


def killed(name: str) -> Make:
    """Work that is killed after writing a file."""

    def make(folder: Path) -> Facts:
        (folder / name).write_text(name)
        raise Killed

    return make


def must_not_be_called(*_: Any) -> Any:
    raise AssertionError("called")


def aside(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.name.startswith("artifact."))


def interrupted(root: Path, name: str, **settings: Any) -> None:
    with pytest.raises(Killed):
        run(root, killed(name), **settings)


def flip(path: Path) -> None:
    """Other bytes, as many."""
    path.write_bytes(bytes(byte ^ 255 for byte in path.read_bytes()))


def two_files(folder: Path) -> Facts:
    """Work that keeps a part that is there."""
    for name in ("first", "second"):
        if not (folder / name).exists():
            (folder / name).write_text(name)
    return {"count": 3}

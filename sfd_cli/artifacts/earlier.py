"""What other recipes made of an artifact, and still lies beside it, so that a stage may take parts of it over."""

from __future__ import annotations

import shutil
from pathlib import Path

from sfd_cli.artifacts.recipe import COPY, SETTINGS, Record
from sfd_cli.errors import UserError


def earlier_artifacts(folder: Path, stage: str) -> list[Path]:
    """Folders of what this stage made by other recipes, finished or not: kept for now, or put aside for good."""
    put_aside = (path for path in sorted(folder.parent.iterdir()) if path.name.startswith(f"{folder.name}."))
    records = ((path, _record(path)) for path in (_earlier_of(folder), *put_aside) if path.is_dir())
    return [path for path, record in records if record is not None and record.stage == stage]


def keep_earlier(folder: Path) -> bool:
    """Move an artifact that DVC's cache has to where parts of it may be taken over until `remove_earlier`.

    Returns:
        Whether it was moved; not where somebody's own folder lies there.
    """
    remove_earlier(folder)
    if _earlier_of(folder).exists():
        return False
    folder.rename(_earlier_of(folder))
    return True


def remove_earlier(folder: Path) -> None:
    """Remove what `keep_earlier` moved, its record last: by that it is known again."""
    kept = _earlier_of(folder)
    record = _record(kept)
    if record is None or not (record.complete and record.under_dvc):
        return
    for path in kept.iterdir():
        if path.name not in (SETTINGS, COPY):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(kept)


def _earlier_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.earlier")


def _record(folder: Path) -> Record | None:
    try:
        return Record.read(folder)
    except UserError:
        return None

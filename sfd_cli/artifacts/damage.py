"""Damage to an artifact, as it is told: by the files and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sfd_cli.errors import UserError

NAMED = 3


def told(folder: Path, wrong: Mapping[str, str]) -> str:
    """The first files of a folder that are damaged, and what is wrong with them; a name may be empty: the folder."""
    named = [f"{folder / name} {what}" for name, what in list(wrong.items())[:NAMED]]
    return ", ".join(named) + (f", and {len(wrong) - NAMED} more" if len(wrong) > NAMED else "")


def damage(folder: Path, wrong: Mapping[str, str], otherwise: str) -> UserError:
    """The error about damaged files; `otherwise` is what to do where no copy of them can be had."""
    remedy = f"bring it back (`dvc checkout --force {folder}` has what DVC finished), or {otherwise}"
    return UserError(folder, f"is damaged: {told(folder, wrong)}", remedy)

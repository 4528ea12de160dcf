"""The schedule that `sfd learn-schedule` found, as the transformers that are to be trained along it take it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from sfd_cli.artifacts.fingerprints import finished
from sfd_cli.config import DiT, first_problem
from sfd_cli.errors import UserError
from sfd_cli.files import read_json, write_json
from sfd_cli.laws import LEARNED

LAW = "law.json"

D = TypeVar("D", bound=DiT)


def with_learned_law(section: D, folder: Path) -> D:
    """The section with the learned schedule's name and numbers, where it asks for the learned one.

    Raises:
        UserError: nothing was learned yet, or the file in `folder` tells of no law.
    """
    if section.schedule != LEARNED:
        return section
    finished(folder, "sfd learn-schedule")
    path = folder / LAW
    if not path.exists():
        raise UserError(folder, "holds no learned schedule", "run `sfd learn-schedule`")
    law = read_json(path)
    again = "delete its folder and run its stage again"
    if not isinstance(law, dict) or law.get("schedule", LEARNED) == LEARNED:
        raise UserError(path, "tells of no schedule", again)
    try:
        return type(section).model_validate(section.model_dump() | law)
    except ValidationError as error:
        found = first_problem(error, type(section))
        raise UserError(path, f"tells of no schedule ({found.subject}: {found.problem})", again) from None


def save_law(folder: Path, law: dict[str, Any]) -> None:
    """Write the law, `schedule` and the numbers that it reads."""
    write_json(folder / LAW, law)

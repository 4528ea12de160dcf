"""Classes as people give them, by index or by name, as rows of a network's conditions."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from sfd_cli.diffusion.conditions import NULL, Conditions
from sfd_cli.errors import UserError

LISTED = 10
"""Names that a refusal lists where none is near."""


def rows_of(labels: Sequence[int | str], conditions: Conditions, subject: str) -> list[int]:
    """Rows of the conditions that labels name: the class of an index or a name, the last row of `null`.

    Args:
        labels: indices or names.
        conditions: those that the network knows.
        subject: the setting or argument that they come from, for messages.

    Raises:
        UserError: there are none, no class is called so, or an index is of no class.
    """
    wrong = [label for label in labels if not isinstance(label, str) and not 0 <= label < len(conditions)]
    if wrong or len(labels) == 0:
        problem = f"{wrong[:5] if wrong else 'an empty list'} cannot be sampled"
        raise UserError(subject, problem, f"the transformer knows classes 0 to {len(conditions) - 1}")
    return [_row(label, conditions, subject) if isinstance(label, str) else int(label) for label in labels]


def plainly(rows: Sequence[int], conditions: Conditions) -> list[int | str]:
    """Rows as settings name them: indices of classes, and `null`."""
    return [NULL if row == conditions.nothing else row for row in rows]


def _row(name: str, conditions: Conditions, subject: str) -> int:
    try:
        return conditions.row(name)
    except KeyError:
        raise UserError(subject, f"no class is called {name!r}", _suggestion(name, conditions.names)) from None


def _suggestion(name: str, names: Sequence[str]) -> str:
    wanted, folded = name.casefold(), {one.casefold(): one for one in names}
    near = [own for known, own in folded.items() if wanted and wanted in known]
    near = near or [folded[known] for known in difflib.get_close_matches(wanted, folded)]
    if near:
        return f"did you mean {' or '.join(map(repr, near[:3]))}?"
    more = f" and {len(names) - LISTED} more (`class_names` of its config.json)" if len(names) > LISTED else ""
    return f"the transformer's class_names are {', '.join(map(repr, names[:LISTED]))}{more}, and {NULL!r} is no class"

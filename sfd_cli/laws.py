"""What the sections `dit`, `guide` and `sample` say about the law of both streams' times: its name and its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from sfd_cli.errors import SettingError
from sfd_cli.protocols import PROTOCOL_KEYS

DEFAULT_LAW = "offset"
LEARNED = "learned"
LAW_NUMBERS: dict[str, tuple[str, ...]] = {
    "offset": ("delta_t",),
    "lead": ("lead",),
    "curve": ("lead", "lead_slope"),
    "knots": ("knots",),
    LEARNED: (),
}
"""The settings that each law of this package reads; those of another package may read any."""
NUMBERS = tuple(dict.fromkeys(name for names in LAW_NUMBERS.values() for name in names))
LAW_KEYS = ("schedule", *NUMBERS)

LAW_HELP = "law of both streams' times: offset, lead, curve or knots"
TRAINED_LAW_HELP = f"{LAW_HELP}; or learned, by `sfd learn-schedule`"
LEAD_HELP = "semantics minus textures in logit time; read by lead and curve (there: half-way)"
SLOPE_HELP = "by how much more the lead is at the end than half-way; read by curve"
KNOTS_HELP = "corners t_semantic, t_texture, ... of the path from 0, 0 to 1, 1 in a row; read by knots"


def require_path(values: list[float]) -> list[float]:
    """`values` if they are the corners of a path, pairs of which neither number falls.

    Raises:
        SettingError: they are not.
    """
    if len(values) % 2:
        raise SettingError("", f"{len(values)} numbers are no pairs", "give t_semantic and t_texture of every corner")
    points = [(0.0, 0.0), *zip(values[::2], values[1::2], strict=True), (1.0, 1.0)]
    for (semantic, texture), (next_semantic, next_texture) in pairwise(points):
        if not (semantic <= next_semantic and texture <= next_texture):
            problem = f"the path goes back from {semantic:g}, {texture:g} to {next_semantic:g}, {next_texture:g}"
            raise SettingError("", problem, "put the corners in order, between 0, 0 and 1, 1")
        if (semantic, texture) == (next_semantic, next_texture):
            raise SettingError("", f"the path stands still at {semantic:g}, {texture:g}", "leave that corner out")
    return values


def law_name(section: Any) -> str | None:
    """The law that a section names; None where it is left to the transformer."""
    if section.schedule is None and section.delta_t is not None:
        return DEFAULT_LAW
    return section.schedule


def law_of(section: Any) -> dict[str, Any]:
    """The law that a section names, by `schedule`, and the numbers that it reads."""
    law = law_name(section)
    return {"schedule": law} | {key: getattr(section, key) for key in LAW_NUMBERS.get(str(law), NUMBERS)}


def law_fact(law: Mapping[str, Any]) -> dict[str, Any]:
    """How a transformer's folder tells of the law it was trained with: a bare `delta_t`, as always, or `schedule`."""
    return {"delta_t": law["delta_t"]} if law["schedule"] == DEFAULT_LAW else {"schedule": dict(law)}


def is_synchronous(section: Any) -> bool:
    """Whether both streams have the same time throughout."""
    law = law_of(section)
    return law.pop("schedule") in ("offset", "lead", "curve") and not any(law.values())


def require_read(section: Any, but: str = "") -> None:
    """Check that no number is given, except `but`, that the chosen law does not read.

    Raises:
        SettingError: there is one.
    """
    law = law_name(section)
    read = law_of(section).keys() if law else set()
    for key in NUMBERS:
        value = getattr(section, key)
        if key not in (*read, but) and value not in (None, 0, []):
            reader = next(name for name, numbers in LAW_NUMBERS.items() if key in numbers)
            problem = f"{value} is not read by {law}" if law else f"{value} is read by no law unless one is named"
            raise SettingError(key, problem, f"use schedule: {reader}, or leave it out")


def laid_over(present: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """A section's values with `keys` over them; where these choose a law, numbers of another one go with it.

    Where they choose a protocol, what protocols decide goes with the one before: it takes the new one's values.
    """
    law = keys.get("schedule") or (DEFAULT_LAW if "delta_t" in keys else None)
    unread = set(LAW_KEYS) - set(LAW_NUMBERS.get(law, LAW_KEYS)) if law else set()
    unread |= set(PROTOCOL_KEYS) if keys.get("protocol") else set()
    return {key: value for key, value in present.items() if key not in unread} | dict(keys)

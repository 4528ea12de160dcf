"""Settings as plain values: dotted keys, and settings laid over others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sfd_cli.laws import laid_over


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """`{"dit.steps": 3}` as `{"dit": {"steps": 3}}`, at every depth."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        first, _, rest = str(key).partition(".")
        inner = {rest: value} if rest else value
        found = merged(found, {first: nested(inner) if isinstance(inner, dict) else inner})
    return found


def dotted(values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `nested`: one dotted key for every value that is no mapping."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = dotted(value) if isinstance(value, dict) and value else None
        found |= {key: value} if inner is None else {f"{key}.{rest}": one for rest, one in inner.items()}
    return found


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `under`, mapping by mapping; neither is changed."""
    both = {
        key: merged(under[key], value)
        for key, value in over.items()
        if isinstance(value, dict) and isinstance(under.get(key), dict)
    }
    return {**under, **over, **both}


def laid(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Sections of `over` laid over those of `under`; where one chooses a law, numbers of another one go with it."""
    found = merged(under, over)
    for section, keys in over.items():
        present = under.get(section)
        if isinstance(keys, dict) and isinstance(present, dict):
            found[section] = laid_over(present, {key: found[section][key] for key in keys})
    return found


def lookup(values: Any, key: str, otherwise: Any = None) -> Any:
    """What nested `values` have under a dotted key, or the nearest section that is none; `otherwise` for nothing."""
    first, _, rest = key.partition(".")
    found = values.get(first, otherwise)
    return lookup(found, rest, otherwise) if rest and isinstance(found, dict) else found

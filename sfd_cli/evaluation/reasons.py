"""Scores, and why one is missing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

# A score that cannot be computed is None, with the reason under `<name>_reason`.
Scores = dict[str, Any]


class NotComputable(ValueError):
    """A score cannot be computed; the text is the reason that is reported."""


class TooFewImages(NotComputable):
    """A set of images is smaller than the score needs: `needed` would do, the smaller set has `found`."""

    def __init__(self, needed: int, found: int) -> None:
        super().__init__(f"needs more than {needed - 1} images on either side, found {found}")
        self.needed, self.found = needed, found


def unavailable(keys: Iterable[str], reason: str) -> Scores:
    """None for each of `keys`, with the reason."""
    return {key: value for name in keys for key, value in ((name, None), (f"{name}_reason", reason))}

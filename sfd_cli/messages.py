"""One line to the person at the terminal."""

from __future__ import annotations

import sys


def say(message: str) -> None:
    """Print a line on stderr, so that results on stdout can be piped."""
    print(f"sfd: {message}", file=sys.stderr, flush=True)

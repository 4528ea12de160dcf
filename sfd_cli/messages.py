"""Lines to the person at the terminal."""

from __future__ import annotations

import sys


def printable(text: object) -> str:
    """A text in one line that a terminal only shows: control characters, line breaks and marks of direction escaped.

    Names of files, classes and tensors come from elsewhere; printed as they are they could break a line in two or send
    commands to the terminal.
    """
    return "".join(part if part.isprintable() else part.encode("unicode_escape").decode() for part in str(text))


def say(message: str) -> None:
    """Print a line on stderr, so that results on stdout can be piped."""
    print(f"sfd: {printable(message)}", file=sys.stderr, flush=True)

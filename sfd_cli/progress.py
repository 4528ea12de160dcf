"""How far a long piece of work is: a bar on a terminal, and where there is none a line every half minute."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

INTERVAL = 30.0
"""Seconds between lines; work that takes no longer says nothing."""
LINE = "{desc}: {n_fmt} of {total_fmt} in {elapsed}, {remaining} left, {rate_fmt}{postfix}"


class _Lines:
    """A file for tqdm that is no terminal: what would be drawn over the last bar is a line of its own."""

    def write(self, text: str) -> None:
        """Print what there is to read, without the moves of a cursor."""
        if line := text.strip():
            print(f"sfd: {line}", file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Every line is."""


def progress(
    iterable: Iterable[Any] | None = None,
    doing: str = "",
    total: int | None = None,
    silent: bool = False,
    **options: Any,
) -> tqdm:
    """tqdm's bar over `iterable`, or to be moved on by `update`, on stderr.

    Where stderr is a file or a pipe (nohup, SLURM, CI) there is a line every `INTERVAL` seconds instead, so that a log
    tells how fast work goes, how long it will take, and where it was when it was killed.

    Args:
        iterable: what is worked off.
        doing: what that is.
        total: how many items there are, where `iterable` does not tell.
        silent: show nothing, as in all processes but the first.
        **options: of tqdm: `unit`, `initial`, `unit_scale`, `unit_divisor`.
    """
    if not sys.stderr.isatty():
        options |= {
            "file": _Lines(),
            "mininterval": INTERVAL,
            "maxinterval": INTERVAL,
            "delay": INTERVAL,
            "bar_format": LINE,
        }
    return tqdm(iterable, doing, total, disable=silent, **options)

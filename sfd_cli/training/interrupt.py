"""SIGTERM and SIGINT as a request to stop at the next step, so that there is time for a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_requests() -> Iterator[Callable[[], int]]:
    """While the block runs, the two signals are only noted; the yielded function tells which came last, 0 for none.

    Outside the main thread Python has no signal handlers to set, and none is noted.
    """
    seen = [0]

    def note(number: int, _frame: FrameType | None) -> None:
        seen[0] = number

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: seen[0]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_for(number: int) -> None:
    """End the program as the signal would have: KeyboardInterrupt, or SystemExit with code 143."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)

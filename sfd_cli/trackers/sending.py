"""Sending a run to trackers, beside the work and never in its way."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from sfd_cli.config import Settings
from sfd_cli.errors import SfdError
from sfd_cli.messages import say
from sfd_cli.tables import TRACKERS
from sfd_cli.trackers.identity import held, run_of
from sfd_cli.trackers.logged import Logged, NewEntries, numbers
from sfd_cli.trackers.tracker import Run, Tracker, Writer

INTERVAL = 2.0
"""Seconds between looks for new rows."""
AGAIN = 60.0
"""Seconds until a tracker that failed is tried again."""
PATIENCE, HURRY = 30.0, 5.0
"""Seconds that are waited for the last rows when work is done, and when it is broken off."""
LONGEST = 200


def send(tracker: Tracker, run: Run, logged: Logged, scores: Mapping[str, float]) -> NewEntries:
    """Send all there is of a run, now; raises whatever the tracker does."""
    entries, writer = NewEntries(logged), tracker.open(run)
    try:
        _finish(writer, entries, scores)
    except BaseException:
        with suppress(Exception):
            writer.close()
        raise
    writer.close()
    return entries


def _finish(writer: Writer, entries: NewEntries, scores: Mapping[str, float]) -> None:
    writer.log(entries.finish())
    if scores:
        writer.scores(entries.last, scores)


class Sender:
    """Sends a run to one tracker from a thread of its own, as rows are written, until `end`.

    The rows of the TSVs are what waits to be sent, so that nothing is handed over but the number of the step, and
    nothing is lost where a tracker cannot be reached: it is opened anew after a while, and sent what it lacks. Whatever
    it raises is told once, in one line.
    """

    def __init__(self, name: str, tracker: Tracker, run: Run, logged: Logged) -> None:
        self.step = 0
        self._name, self._tracker, self._run, self._logged = name, tracker, run, logged
        self._scores: Mapping[str, float] = {}
        self._ending, self._told = threading.Event(), False
        self._thread = threading.Thread(target=self._work, name=f"sfd-{name}", daemon=True)
        self._thread.start()

    def end(self, scores: Mapping[str, float]) -> None:
        """Send what is left, and the scores, and come to an end; waits for nothing."""
        self._scores = scores
        self._ending.set()

    def join(self, seconds: float) -> None:
        """Wait so long for the end at most."""
        self._thread.join(max(seconds, 0.0))
        if self._thread.is_alive():
            self._tell("has not taken everything in time")

    def _work(self) -> None:
        while True:
            is_last = self._ending.is_set()
            try:
                self._follow()
                return
            except Exception as error:  # of a package that is none of ours
                self._tell(f"cannot be written to ({type(error).__name__}: {_short(error)})")
            if is_last:
                return
            self._ending.wait(AGAIN)

    def _follow(self) -> None:
        entries, writer = NewEntries(self._logged), self._tracker.open(self._run)
        try:
            while not self._ending.is_set():
                if found := entries.look(self.step):
                    writer.log(found)
                self._ending.wait(INTERVAL)
            _finish(writer, entries, self._scores)
        except BaseException:
            with suppress(Exception):
                writer.close()
            raise
        writer.close()

    def _tell(self, what: str) -> None:
        if not self._told:
            self._told = True
            say(f"{self._name} {what}; the work goes on without, and `sfd track --to {self._name}` sends it later")


class Feed:
    """What a stage has in hand while its run is sent.

    Attributes:
        scores: to be sent at the end; the stage puts them here.
    """

    def __init__(self, settings: Settings, key: str, names: list[str]) -> None:
        self.scores: Mapping[str, Any] = {}
        self._logged, self._names = Logged(settings, key), names
        self._senders: list[Sender] | None = None
        self._held = ExitStack()

    @property
    def on_step(self) -> list[Feed]:
        """What training calls after every step; nothing where there is nobody to send to."""
        return [self] if self._names else []

    def __call__(self, step: int, network: object) -> None:
        """The rows up to `step` are written."""
        if self._senders is None:
            self._start()
        for sender in self._senders or ():
            sender.step = step

    def close(self, seconds: float) -> None:
        """Send what is left, waiting so long for it at most."""
        if self._senders is None and self._names:
            self._start()
        until = time.monotonic() + seconds
        for sender in self._senders or ():
            sender.end(numbers(self.scores))
        for sender in self._senders or ():
            sender.join(until - time.monotonic())
        self._held.close()

    @property
    def has_begun(self) -> bool:
        """Whether anything was sent."""
        return self._senders is not None

    def _start(self) -> None:
        self._senders = []
        try:
            if not self._held.enter_context(held(self._logged)):
                say(f"another process sends the curves of {self._logged.log}; this one does not")
                return
            run = run_of(self._logged)
        except (OSError, SfdError) as error:  # no room, or a folder that cannot be written
            say(f"the curves of {self._logged.log} are sent nowhere ({_short(error)}); the work goes on without")
            return
        self._senders = [Sender(name, TRACKERS[name], run, self._logged) for name in self._names]


@contextmanager
def tracked(settings: Settings, key: str, is_main: bool) -> Iterator[Feed]:
    """A block whose run, one of `logged.READ`, is sent to the trackers of the settings, by the first process alone.

    What the run has when the block ends is sent then, with waiting for some seconds at most: no tracker stops or delays
    the work.
    """
    feed = Feed(settings, key, settings.metrics.trackers if is_main else [])
    try:
        yield feed
    except BaseException:
        if feed.has_begun:
            feed.close(HURRY)
        raise
    feed.close(PATIENCE)


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."

"""What processes that work together tell of themselves, and who is lost or stuck by what one has seen of the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Beat(NamedTuple):
    """What a process tells of itself.

    Attributes:
        number: grows as long as the process runs; -1 once it has left with its work done.
        place: batches and collective operations that it has come to, the same ones in every process.
        limit: seconds in which it has to come to the next one; None: it may take its time.
    """

    number: int
    place: int
    limit: float | None = None

    @classmethod
    def read(cls, told: bytes) -> Beat:
        """A beat from the store."""
        number, place, limit = told.decode().split()
        return cls(int(number), int(place), float(limit) if limit != "-" else None)

    def __str__(self) -> str:
        return f"{self.number} {self.place} {'-' if self.limit is None else self.limit}"


@dataclass
class _Seen:
    """A beat, since when it is the last one that was heard, and since when all others are as far or farther."""

    beat: Beat
    heard: float
    behind: float | None = None


class Attendance:
    """What one process knows of others, by its own clock: since when each counts and goes on no more."""

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self._seen: dict[int, _Seen] = {}

    def note(self, beats: Mapping[int, Beat], now: float) -> None:
        """What processes tell now."""
        for rank, beat in beats.items():
            seen = self._seen.setdefault(rank, _Seen(beat, now))
            if beat.number != seen.beat.number:
                seen.heard = now
            if beat[1:] != seen.beat[1:]:
                seen.behind = None
            seen.beat = beat
            if beat.number < 0:
                del self._seen[rank]
        # Who has waited for others is not late from the beginning of the wait, but from when they have come.
        least = min((seen.beat.place for seen in self._seen.values()), default=0)
        for seen in self._seen.values():
            is_behind = seen.beat.place == least
            seen.behind = (now if seen.behind is None else seen.behind) if is_behind else None

    def excuse(self, now: float) -> None:
        """Forget since when: this process has not looked for a while."""
        for seen in self._seen.values():
            seen.heard = now
            seen.behind = None if seen.behind is None else now

    def lost(self, now: float) -> list[int]:
        """Processes that were not heard of for as long as there is patience."""
        return [rank for rank, seen in self._seen.items() if now - seen.heard > self.patience]

    def stuck(self, now: float) -> tuple[list[int], float]:
        """Processes for which all others wait, past their limit, and that limit; none where one may take its time."""
        limits = []
        for seen in self._seen.values():
            if seen.behind is not None:
                if seen.beat.limit is None or now - seen.behind <= seen.beat.limit:
                    return [], 0.0
                limits.append(seen.beat.limit)
        return [rank for rank, seen in self._seen.items() if seen.behind is not None], max(limits, default=0.0)

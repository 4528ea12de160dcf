"""Random damage to the bytes of a file: a bit flipped, the end cut, bytes put in between, a block of zeros."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

BLOCK = 64


@dataclass(frozen=True)
class Damage:
    """What is done to a file.

    Attributes:
        kind: one of KINDS.
        place: where, as a share of its length.
        bit: which of eight.
        inserted: bytes that are put in between.
    """

    kind: str
    place: float
    bit: int = 0
    inserted: bytes = b"?"

    def to(self, content: bytes) -> bytes:
        """The damaged bytes; they may be the same where zeros are put over zeros."""
        place = min(int(self.place * len(content)), max(len(content) - 1, 0))
        before, rest = content[:place], content[place:]
        if self.kind == "cut" or not rest:
            return before
        if self.kind == "flip":
            return before + bytes([rest[0] ^ 1 << self.bit]) + rest[1:]
        if self.kind == "insert":
            return before + self.inserted + rest
        return before + bytes(min(BLOCK, len(rest))) + rest[BLOCK:]


KINDS = ("flip", "cut", "insert", "zeros")

# Headers are short and say what all the rest is: half of all damage is done there.
PLACES = st.one_of(st.floats(0, 1, exclude_max=True), st.floats(0, 0.02), st.floats(0.98, 1, exclude_max=True))
DAMAGES = st.builds(Damage, st.sampled_from(KINDS), PLACES, st.integers(0, 7), st.binary(min_size=1, max_size=9))

"""What a sample is asked to show, as a table: row i means class i, the last row that nothing is asked for.

Networks embed rows, guidance compares a row with the last one, training drops rows to it. None of them knows what a
row stands for, so that prompts can become rows beside classes without touching solver, guidance or objective.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditions:
    """The rows that a network knows.

    Attributes:
        names: of the rows that ask for something, in order.
    """

    names: tuple[str, ...]

    @classmethod
    def numbered(cls, count: int) -> Conditions:
        """Rows that are named by their numbers."""
        return cls(tuple(str(number) for number in range(count)))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def nothing(self) -> int:
        """The row that asks for nothing (the null label of classifier-free guidance)."""
        return len(self.names)

    def unconditional(self, rows: Tensor) -> Tensor:
        """Rows of the shape of `rows` (B,) that all ask for nothing."""
        return torch.full_like(rows, self.nothing)

    def drop(self, rows: Tensor, dropped: Tensor) -> Tensor:
        """`rows` (B,) int64 with those that are `dropped` (B,) bool asking for nothing."""
        return torch.where(dropped, self.nothing, rows)

    def row(self, name: str) -> int:
        """The row called `name`.

        Raises:
            KeyError: there is none.
        """
        if name not in self.names:
            raise KeyError(name)
        return self.names.index(name)

"""Conditions as a table: row i means class i, and the last row means no condition (the null label).

Networks embed rows, training replaces some by the last one, and classifier-free guidance compares with the last one
(arXiv 2207.12598). None of them knows what a row stands for, so prompts can become rows beside classes without a
change to solver, guidance or objective.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NULL = "null"
"""How the last row is asked for by name, where no condition is called so itself."""


@dataclass(frozen=True)
class Conditions:
    """The rows of a network's embedding of conditions.

    Attributes:
        names: names of the conditions, in the order of their rows; the last row, no condition, has no name.
    """

    names: tuple[str, ...]

    @classmethod
    def numbered(cls, count: int) -> Conditions:
        """`count` conditions named by their numbers."""
        return cls(tuple(str(number) for number in range(count)))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def rows(self) -> int:
        """Number of rows, the last one included."""
        return len(self.names) + 1

    @property
    def nothing(self) -> int:
        """The last row: no condition."""
        return len(self.names)

    def unconditional(self, rows: Tensor) -> Tensor:
        """The last row for every image of `rows` (B,) int64."""
        return torch.full_like(rows, self.nothing)

    def drop(self, rows: Tensor, dropped: Tensor) -> Tensor:
        """`rows` (B,) int64, replaced by the last row where `dropped` (B,) bool."""
        return torch.where(dropped, self.nothing, rows)

    def row(self, name: str) -> int:
        """The row called `name`; the last one is called `null`, unless a condition is.

        Raises:
            KeyError: no row is called so.
        """
        if name in self.names:
            return self.names.index(name)
        if name == NULL:
            return self.nothing
        raise KeyError(name)

    def name(self, row: int) -> str:
        """The name of a row; `null` of the last one."""
        return NULL if row == self.nothing else self.names[row]

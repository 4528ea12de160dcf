"""The classes of images, where they are known: by the labels beside them, or by the folders that they lie in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sfd_cli.evaluation.reasons import NotComputable


@dataclass(frozen=True)
class Labels:
    """The class of every image of a set.

    Attributes:
        classes: by its index, (n,) int64.
        names: of the classes; None where there are no more than indices.
    """

    classes: np.ndarray
    names: tuple[str, ...] | None = None

    @classmethod
    def of_folders(cls, root: Path, files: Sequence[Path]) -> Labels | None:
        """By the folders in `root` that the files lie in, at any depth, sorted by name; None if one lies in none."""
        parts = [file.relative_to(root).parts for file in files]
        if any(len(part) == 1 for part in parts):
            return None
        names = sorted({part[0] for part in parts})
        return cls(np.array([names.index(part[0]) for part in parts]), tuple(names))

    def at(self, images: Sequence[int]) -> Labels:
        """Those of some of the images."""
        return Labels(self.classes[np.asarray(images, dtype=np.int64)], self.names)

    def named_as(self, other: Labels) -> list[str]:
        """The class of every image by its name: its own, or the one that `other` has for its index.

        Raises:
            NotComputable: an index has no name.
        """
        names = self.names or other.names
        if names is None:
            return [str(index) for index in self.classes]
        wrong = self.classes[(self.classes < 0) | (self.classes >= len(names))]
        if len(wrong):
            raise NotComputable(f"label {wrong[0]} names no class of {len(names)}")
        return [names[index] for index in self.classes]

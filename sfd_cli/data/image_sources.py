"""What a source of images, an entry of the table IMAGE_SOURCES, is: a function of the settings that gives an ImageSet.

It raises UserError where the images cannot be had.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sfd_cli.data.images import ImageManifest
from sfd_cli.data.prefetch import threaded_map
from sfd_cli.errors import UserError
from sfd_cli.progress import progress

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class ImageSet:
    """Images that a source offers; nothing has been written yet.

    Attributes:
        settings: settings that decide which images these are and what they look like.
        inputs: versions or fingerprints of what they are made of.
        write: writes into a folder the manifest, and the images unless they are elsewhere.
        free: settings that are recorded, but do not decide the images.
        facts: what is to be recorded about the images, JSON-able.
        shown: what is to be shown about them.
        is_kept: whether a set of the same settings and inputs that is there need not be written again.
    """

    settings: dict[str, Any]
    inputs: dict[str, str]
    write: Callable[[Path], ImageManifest]
    free: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    shown: dict[str, Any] = field(default_factory=dict)
    is_kept: bool = True


def in_threads(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int, doing: str, silent: bool = False
) -> list[Result]:
    """`work` of every item, in order, with a progress bar unless it is to be `silent`."""
    with closing(threaded_map(work, items, max(workers, 1))) as results:
        return list(progress(results, total=len(items), doing=doing, unit="image", silent=silent))


def refuse_overlap(folder: Path, target: Path) -> None:
    """Nothing may be written into the user's folder, nor may it be swept aside with an old output."""
    own, written = folder.resolve(), target.resolve()
    if own == written or own in written.parents or written in own.parents:
        remedy = "move your images elsewhere or set paths.images to another folder"
        raise UserError("images.folder", f"{folder} overlaps {target}, where this stage writes", remedy)

"""A user's own ImageFolder as a source of images: checked, listed in a manifest, never written to."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfd_cli.config import Settings
from sfd_cli.data.image_sources import ImageSet, in_threads
from sfd_cli.data.images import DECODE_ERRORS, ImageManifest, decode_image, evenly_spaced, list_image_folder
from sfd_cli.errors import UserError
from sfd_cli.messages import say

NAMED_PROBLEMS = 10


def image_folder(settings: Settings) -> ImageSet:
    """The images of `images.folder`; each is decoded and hashed every time, as the contents decide the fingerprint.

    Raises:
        UserError: the folder is not an ImageFolder, holds no whole image, overlaps the folder that is written, or,
            with `strict`, holds a corrupt image.
    """
    images, root = settings.images, settings.images.folder
    assert root is not None
    _refuse_overlap(root, settings.paths.images)
    listed = list_image_folder(root)
    listed = [listed[index] for index in evenly_spaced(len(listed), images.limit)]
    results = in_threads(lambda file: _check(root / file), listed, settings.runtime.workers, "checking images")
    checked = dict(zip(listed, results, strict=True))
    corrupt = {file: result.problem for file, result in checked.items() if result.problem is not None}
    _report_corrupt(root, corrupt, images.strict)
    if len(corrupt) == len(listed):
        raise UserError("images.folder", f"none of the {len(listed)} images of {root} can be decoded", "repair them")
    whole = {file: result for file, result in checked.items() if result.problem is None}
    manifest = ImageManifest.of(root, {file: result.digest for file, result in whole.items()})
    emptied = {file.split("/", 1)[0] for file in listed} - set(manifest.classes)
    if emptied:
        say(f"left out, no whole image: class folders {', '.join(sorted(emptied))}")
    sizes = _sizes([result.sides for result in whole.values()], images.size)

    def write(folder: Path) -> ImageManifest:
        # An absolute path stays one; a relative one must hold from the manifest's own folder.
        place = root if root.is_absolute() else Path(os.path.relpath(root, folder))
        manifest.save(folder, root=place.as_posix())
        return manifest

    return ImageSet(
        settings=images.model_dump(include={"source", "size"}),
        inputs={"contents": manifest.fingerprint},
        write=write,
        free={"folder": str(root), "limit": images.limit},
        facts={"corrupt": corrupt, **sizes},
        shown=sizes | {"corrupt files": len(corrupt)},
        # The same images may lie elsewhere by now, or beside other corrupt ones.
        is_kept=False,
    )


@dataclass(frozen=True)
class _Checked:
    """What decoding one file told: the hash of its bytes, its sides in pixels, and what is wrong with it."""

    digest: str = ""
    sides: tuple[int, int] = (0, 0)
    problem: str | None = None


def _refuse_overlap(root: Path, target: Path) -> None:
    """Nothing may be written into the user's folder, nor may it be swept aside with an old output."""
    own, written = root.resolve(), target.resolve()
    if own == written or own in written.parents or written in own.parents:
        raise UserError(
            "images.folder",
            f"{root} overlaps {target}, where this stage writes",
            "move your images elsewhere or set paths.images to another folder",
        )


def _check(path: Path) -> _Checked:
    try:
        content = path.read_bytes()
        return _Checked(hashlib.sha256(content).hexdigest(), decode_image(content).size)
    except DECODE_ERRORS as error:
        return _Checked(problem=" ".join(str(error).split()) or type(error).__name__)


def _report_corrupt(root: Path, corrupt: dict[str, str], strict: bool) -> None:
    named = [f"{root / file} ({problem})" for file, problem in list(corrupt.items())[:NAMED_PROBLEMS]]
    if strict and corrupt:
        raise UserError(
            "images.strict",
            f"{len(corrupt)} corrupt images, the first {named[0]}",
            "repair or remove them, or leave out --strict",
        )
    for one in named:
        say(f"corrupt, left out: {one}")
    if len(corrupt) > NAMED_PROBLEMS:
        say(f"... and {len(corrupt) - NAMED_PROBLEMS} more; all are listed under 'corrupt' in settings.json")


def _sizes(sides: Sequence[tuple[int, int]], size: int) -> dict[str, Any]:
    """Smallest and largest image by area, and how many must be enlarged to reach `size`."""
    ordered = sorted(sides, key=lambda side: (side[0] * side[1], side))
    smallest, largest = ordered[0], ordered[-1]
    return {
        "smallest": f"{smallest[0]} x {smallest[1]}",
        "largest": f"{largest[0]} x {largest[1]}",
        "enlarged": sum(min(side) < size for side in sides),
    }

"""A user's own ImageFolder as a source of images: checked, listed in a manifest, never written to."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfd_cli.config import Settings
from sfd_cli.data.image_sources import ImageSet, in_threads
from sfd_cli.data.images import DECODE_ERRORS, ImageManifest, decode_image, evenly_spaced, list_image_folder
from sfd_cli.errors import UserError
from sfd_cli.messages import say

NAMED_PROBLEMS = 10


def image_folder(settings: Settings) -> ImageSet:
    """The images of `images.folder`, decoded and hashed every time, because the contents decide the fingerprint.

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
    corrupt = {file: found for file, found in checked.items() if isinstance(found, str)}
    whole = {file: found for file, found in checked.items() if not isinstance(found, str)}
    _report_corrupt(root, corrupt, images.strict)
    if not whole:
        raise UserError("images.folder", f"none of the {len(listed)} images of {root} can be decoded", "repair them")
    manifest = ImageManifest.of(root, {file: digest for file, (digest, _) in whole.items()})
    emptied = {file.split("/", 1)[0] for file in listed} - set(manifest.classes)
    if emptied:
        say(f"left out, no whole image: class folders {', '.join(sorted(emptied))}")
    sizes = _sizes([sides for _, sides in whole.values()], images.size)

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


def _refuse_overlap(root: Path, target: Path) -> None:
    """Nothing may be written into the user's folder, nor may it be swept aside with an old output."""
    own, written = root.resolve(), target.resolve()
    if own == written or own in written.parents or written in own.parents:
        remedy = "move your images elsewhere or set paths.images to another folder"
        raise UserError("images.folder", f"{root} overlaps {target}, where this stage writes", remedy)


def _check(path: Path) -> tuple[str, tuple[int, int]] | str:
    """Hash of a file's bytes and its sides in pixels, or what is wrong with it."""
    try:
        content = path.read_bytes()
        return hashlib.sha256(content).hexdigest(), decode_image(content).size
    except DECODE_ERRORS as error:
        return " ".join(str(error).split()) or type(error).__name__


def _report_corrupt(root: Path, corrupt: dict[str, str], strict: bool) -> None:
    named = [f"{root / file} ({problem})" for file, problem in list(corrupt.items())[:NAMED_PROBLEMS]]
    if strict and corrupt:
        problem = f"{len(corrupt)} corrupt images, the first {named[0]}"
        raise UserError("images.strict", problem, "repair or remove them, or leave out --strict")
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

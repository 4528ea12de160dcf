"""`sfd prepare-data`: build the demo image set, or check an ImageFolder of the user's own."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from sfd_cli.artifacts.output import StageOutput
from sfd_cli.config import Settings
from sfd_cli.data import openmoji
from sfd_cli.data.images import DECODE_ERRORS, ImageManifest, decode_image, evenly_spaced, list_image_folder
from sfd_cli.data.prefetch import threaded_map
from sfd_cli.errors import UserError
from sfd_cli.messages import say

STAGE = "prepare-data"
NAMED_PROBLEMS = 10
LISTED_CLASSES = 20
Item = TypeVar("Item")
Result = TypeVar("Result")


def run(settings: Settings) -> dict[str, Any]:
    """Write `manifest.json` and, for the demo set, the images beside it.

    Returns:
        The summary to print: number of images, images per class, sizes, corrupt files.

    Raises:
        UserError: the user's folder is not an ImageFolder, holds no whole image, overlaps the folder this
            stage writes, or, with `strict`, holds a corrupt image.
    """
    return _draw_openmoji(settings) if settings.images.source == "openmoji" else _check_folder(settings)


def _draw_openmoji(settings: Settings) -> dict[str, Any]:
    images = settings.images
    chosen = images.model_dump(include={"source", "size", "skin_tones", "limit"})
    versions = openmoji.package_versions()
    with StageOutput(settings.paths.images, STAGE, chosen, versions, settings.paths.metrics) as output:
        if output.complete:
            say(f"{output.folder} is up to date")
        else:
            drawings = list(openmoji.drawings(images.skin_tones).items())
            drawings = [drawings[index] for index in evenly_spaced(len(drawings), images.limit)]
            for folder in {Path(file).parent for file, _ in drawings}:
                (output.folder / folder).mkdir(exist_ok=True)

            def draw(drawing: tuple[str, Path]) -> str:
                file, svg = drawing
                return _write_png(output.folder / file, openmoji.rasterise(svg, images.size))

            digests = _in_threads(draw, drawings, settings.runtime.workers, "drawing")
            files = [file for file, _ in drawings]
            manifest = ImageManifest.of(output.folder, dict(zip(files, digests, strict=True)))
            manifest.save(output.folder, root=".")
            output.finish(images=len(manifest), classes=manifest.class_counts())
    manifest = ImageManifest.load(settings.paths.images)
    return _summary(manifest) | {"size": f"{images.size} x {images.size}"}


def _write_png(path: Path, content: bytes) -> str:
    """Write one image durably and return its hash; not atomic, as an interrupted stage draws all anew."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class _Checked:
    """What decoding one file told: the hash of its bytes, its sides in pixels, and what is wrong with it."""

    digest: str = ""
    sides: tuple[int, int] = (0, 0)
    problem: str | None = None


def _check_folder(settings: Settings) -> dict[str, Any]:
    """Decode and hash every image of the user's folder, each time: the contents decide the fingerprint."""
    images, target = settings.images, settings.paths.images
    assert images.folder is not None
    root = images.folder
    _refuse_overlap(root, target)
    listed = list_image_folder(root)
    listed = [listed[index] for index in evenly_spaced(len(listed), images.limit)]
    results = _in_threads(lambda file: _check(root / file), listed, settings.runtime.workers, "checking images")
    checked = dict(zip(listed, results, strict=True))
    corrupt = {file: result.problem for file, result in checked.items() if result.problem is not None}
    _report_corrupt(root, corrupt, images.strict)
    if len(corrupt) == len(listed):
        raise UserError(f"images.folder: none of the {len(listed)} images of {root} can be decoded")
    whole = {file: result for file, result in checked.items() if result.problem is None}
    manifest = ImageManifest.of(root, {file: result.digest for file, result in whole.items()})
    emptied = {file.split("/", 1)[0] for file in listed} - set(manifest.classes)
    if emptied:
        say(f"left out, no whole image: class folders {', '.join(sorted(emptied))}")
    sizes = _sizes([result.sides for result in whole.values()], images.size)
    chosen = images.model_dump(include={"source", "size"})
    inert = {"folder": str(root), "limit": images.limit}
    contents = {"contents": manifest.fingerprint}
    with StageOutput(target, STAGE, chosen, contents, settings.paths.metrics, inert) as output:
        # An absolute path stays one; a relative one must hold from the manifest's own folder.
        place = root if root.is_absolute() else Path(os.path.relpath(root, output.folder))
        manifest.save(output.folder, root=place.as_posix())
        output.finish(images=len(manifest), classes=manifest.class_counts(), corrupt=corrupt, **sizes)
    return _summary(manifest) | sizes | {"corrupt files": len(corrupt)}


def _refuse_overlap(root: Path, target: Path) -> None:
    """Nothing may be written into the user's folder, nor may it be swept aside with an old output."""
    own, written = root.resolve(), target.resolve()
    if own == written or own in written.parents or written in own.parents:
        raise UserError(
            f"images.folder: {root} overlaps {target}, where this stage writes; "
            "move your images elsewhere or set paths.images to another folder"
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
            f"{len(corrupt)} corrupt images, the first {named[0]}; repair or remove them, or leave out --strict"
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


def _summary(manifest: ImageManifest) -> dict[str, Any]:
    counts = manifest.class_counts()
    few = len(counts) <= LISTED_CLASSES
    return {
        "images": len(manifest),
        "classes": counts if few else f"{len(counts)}, {min(counts.values())} to {max(counts.values())} images each",
    }


def _in_threads(work: Callable[[Item], Result], items: Sequence[Item], workers: int, doing: str) -> list[Result]:
    """`work` of every item, in order, with a progress bar on a terminal."""
    with closing(threaded_map(work, items, max(workers, 1))) as results:
        return list(tqdm(results, total=len(items), desc=doing, unit="image", disable=None))

"""A user's own images as a source, in folders or archives: checked, listed in a manifest, never written to."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from sfd_cli.config import Settings
from sfd_cli.data.archives import StoredImage, is_archive, list_archives
from sfd_cli.data.contents import write_contents
from sfd_cli.data.image_sources import ImageSet, in_threads, refuse_overlap
from sfd_cli.data.images import SPLITS, ImageManifest, Place, by_folders, evenly_spaced, is_image, list_image_folder
from sfd_cli.data.known_images import KnownImages, Look, remember_images
from sfd_cli.distributed.processes import Processes
from sfd_cli.errors import StageFailure, UserError
from sfd_cli.files import fingerprint
from sfd_cli.messages import say
from sfd_cli.tables import ARCHIVES

NAMED_PROBLEMS = 10
PIECE = 1_000
"""Images that a process checks before the next ones are another's: neighbours, as archives read them best."""


def image_folder(settings: Settings) -> ImageSet:
    """The images of `images.folder`, decoded and hashed, because the contents decide the fingerprint.

    The same images with the same names have the same fingerprint, order and classes, whether in folders or in archives.
    Those that are known, see `known_images`, are not read again. Under torchrun the processes share the rest.

    Raises:
        UserError: there are no images, or none that is whole, or no classes; an archive is damaged; they overlap the
            folder that is written; or, with `strict`, one is corrupt.
        StageFailure: the processes have not the same images before them.
    """
    images, given = settings.images, settings.images.folder
    assert given is not None
    refuse_overlap(given, settings.paths.images)
    processes = Processes.join()
    root, found = processes.agree(lambda: _find(given))
    listed = sorted(found, key=by_folders)
    listed = [listed[index] for index in evenly_spaced(len(listed), images.limit)]
    results = _looked_at(listed, found, settings, processes)
    checked = dict(zip(listed, results, strict=True))
    corrupt = {file: found for file, found in checked.items() if isinstance(found, str)}
    whole = {file: found for file, found in checked.items() if not isinstance(found, str)}
    _report_corrupt(found, corrupt, images.strict, processes.is_main)
    if not whole:
        raise UserError("images.folder", f"none of the {len(listed)} images of {given} can be decoded", "repair them")
    places = {name: _place(found[name], root) for name in whole}
    if all(place == (name,) for name, place in places.items()):
        places = {}
    digests = {file: look.digest.hex() for file, look in whole.items()}
    manifest = ImageManifest.of(root, digests, places)
    emptied = {file.split("/", 1)[0] for file in listed} - set(manifest.classes)
    if emptied and processes.is_main:
        say(f"left out, no whole image: class folders {', '.join(sorted(emptied))}")
    sizes = _sizes([look.sides for look in whole.values()], images.size)

    def write(folder: Path) -> ImageManifest:
        # An absolute path stays one; a relative one must hold from the manifest's own folder.
        place = root if root.is_absolute() else Path(os.path.relpath(root, folder))
        manifest.save(folder, root=place.as_posix())
        write_contents(folder, manifest, digests)
        remember_images(folder, whole.values())
        return manifest

    return ImageSet(
        settings=images.model_dump(include={"source", "size"}),
        inputs={"contents": manifest.fingerprint},
        write=write,
        free={"folder": str(given), "limit": images.limit},
        facts={"corrupt": corrupt, **sizes},
        shown=sizes | {"corrupt files": len(corrupt)},
        # The same images may lie elsewhere by now, or beside other corrupt ones.
        is_kept=False,
    )


def _find(given: Path) -> tuple[Path, dict[str, Path | StoredImage]]:
    """The folder that holds everything, and every image by its name `CLASS/...`.

    Raises:
        UserError: there are no images, or what there is tells no classes.
    """
    if "*" in given.name:
        archives = sorted(path for path in given.parent.glob(given.name) if is_archive(path))
        if not archives:
            remedy = f"name some, such as train-*.parquet ({', '.join(ARCHIVES)})"
            raise UserError("images.folder", f"{given} matches no archives", remedy)
        return given.parent, dict(list_archives(archives))
    if given.is_file():
        return given.parent, dict(list_archives([given]))
    if archives := _archives_of(given):
        return given, dict(list_archives(archives))
    files = list_image_folder(given)
    # A folder of loose images is one class.
    return given, {file if "/" in file else f"images/{file}": given / file for file in files}


def _archives_of(folder: Path) -> list[Path]:
    """The archives of a folder that holds nothing else to learn from.

    Raises:
        UserError: their names tell several splits.
    """
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".")) if folder.is_dir() else []
    archives = [entry for entry in entries if is_archive(entry)]
    if any(entry.is_dir() or is_image(entry.name) for entry in entries):
        return []
    splits = sorted({found for entry in archives if (found := re.split(r"[-_.]", entry.name)[0]) in SPLITS})
    if len(splits) > 1:
        problem = f"{folder} holds archives of the splits {', '.join(splits)}"
        raise UserError("images.folder", problem, f"name one, such as {folder / splits[0]}*{archives[0].suffix}")
    return archives


def _place(image: Path | StoredImage, root: Path) -> Place:
    """Where an image is, as the manifest has it."""
    if isinstance(image, StoredImage):
        return (image.path.relative_to(root).as_posix(), *image.inner)
    return (image.relative_to(root).as_posix(),)


def _looked_at(
    listed: Sequence[str], found: Mapping[str, Path | StoredImage], settings: Settings, processes: Processes
) -> list[Look | str]:
    """What there is of every listed image, or what is wrong with it; the processes take pieces of the list in turn.

    Raises:
        StageFailure: another process lists other images.
    """
    first = processes.broadcast(names := fingerprint(listed))
    processes.agree(lambda: _require_same(names, first))
    known = KnownImages.beside(settings.paths.images)
    pieces = [listed[start : start + PIECE] for start in range(0, len(listed), PIECE)]
    mine = [found[name] for piece in pieces[processes.rank :: processes.count] for name in piece]

    def look() -> list[Look | str]:
        doing = "checking images"
        return in_threads(known.look, mine, settings.runtime.threads, doing, silent=not processes.is_main)

    parts = [iter(part) for part in processes.gather(look)]  # in the first process
    turns = enumerate(pieces) if parts else ()
    whole = [one for number, piece in turns for one in islice(parts[number % processes.count], len(piece))]
    return processes.broadcast(whole)


def _require_same(names: str, first: str) -> None:
    if names != first:
        problem = "not every process has the same images before it"
        raise StageFailure("sfd prepare-data", problem, "give all machines the same files")


def _report_corrupt(
    found: Mapping[str, Path | StoredImage], corrupt: dict[str, str], strict: bool, aloud: bool
) -> None:
    named = [f"{found[file]} ({problem})" for file, problem in list(corrupt.items())[:NAMED_PROBLEMS]]
    if strict and corrupt:
        problem = f"{len(corrupt)} corrupt images, the first {named[0]}"
        raise UserError("images.strict", problem, "repair or remove them, or leave out --strict")
    for one in named if aloud else ():
        say(f"corrupt, left out: {one}")
    if aloud and len(corrupt) > NAMED_PROBLEMS:
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

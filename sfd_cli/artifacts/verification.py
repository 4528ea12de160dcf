"""Whether an artifact is what its stage left, byte for byte."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from sfd_cli.artifacts.damage import told
from sfd_cli.artifacts.recipe import Record, checkpoints_of
from sfd_cli.checksums import SUMS, damaged_by_own, differing, forget, remember
from sfd_cli.data.contents import CONTENTS, read_contents
from sfd_cli.data.image_sources import in_threads
from sfd_cli.data.images import ImageManifest
from sfd_cli.data.known_images import forget_images
from sfd_cli.errors import UserError
from sfd_cli.messages import say


def verify(folder: Path) -> tuple[str, bool]:
    """What was found in an artifact of which every byte was read, in words, and whether something is damaged.

    Its stage and those that read it know of it then.

    Raises:
        UserError: no artifact is there.
    """
    try:
        record = Record.read(folder)
    except UserError as error:
        return error.problem, True
    if record is None:
        raise UserError(folder, "holds no artifact with a record (settings.json)", "check the path")
    wrong = differing(folder, record.files)
    if wrong:
        forget(folder)
    elif record.files:
        remember(folder, record.files)
    images = {} if wrong or CONTENTS not in record.files else _changed_images(folder)
    if images:
        forget_images(folder)
    checkpoints = checkpoints_of(folder, record.fingerprint)
    places = {folder: wrong | images, checkpoints: _damaged_checkpoints(checkpoints)}
    if hurt := [told(place, files) for place, files in places.items() if files]:
        return f"damaged: {'; '.join(hurt)}", True
    if not record.complete:
        return "unfinished", False
    if record.contents != {"files": 0, "bytes": 0} and not record.files:
        return "made before checksums were kept, so that there is nothing to compare", False
    size = sum(int(checksum.split()[0]) for checksum in record.files.values())
    return f"whole, {len(record.files):,} files, {size / 1e6:,.1f} MB", False


def _changed_images(folder: Path) -> dict[str, str]:
    """What is wrong with the images of a manifest that lie elsewhere, by name; all are read."""
    manifest = ImageManifest.load(folder)
    contents = read_contents(folder, manifest) or []

    def compare(index: int) -> str:
        try:
            content = manifest.path(index).read_bytes()
        except OSError as error:
            return f"cannot be read ({error.strerror or error})"
        return "" if hashlib.sha256(content).digest() == contents[index] else "is not what was read"

    say(f"reading the {len(contents):,} images of {manifest.root}")
    found = in_threads(compare, range(len(contents)), os.cpu_count() or 1, "images")
    return {name: problem for name, problem in zip(manifest.files, found, strict=True) if problem}


def _damaged_checkpoints(folder: Path) -> dict[str, str]:
    wrong: dict[str, str] = {}
    for sums in sorted(folder.glob(f"*/{SUMS}")):
        name = sums.parent.relative_to(folder)
        try:
            found = damaged_by_own(sums.parent)
        except UserError as error:
            found = {SUMS: error.problem}
        wrong |= {f"{name / file}": what for file, what in found.items()}
    return wrong

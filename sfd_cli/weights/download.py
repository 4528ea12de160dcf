"""One file over HTTP, resumed where an earlier attempt was cut, and never mixed from two versions."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from sfd_cli import __version__
from sfd_cli.files import read_json, write_json
from sfd_cli.progress import progress

STALL_SECONDS = 30.0
ATTEMPTS = 5
PAUSE_SECONDS = 0.5
PIECE = 1 << 20
HINTS = {
    401: ", so it wants a login that is not given",
    403: ", so you have no permission there, or a proxy or firewall on the way refuses it",
    404: ", so it is not there any more",
}


class DownloadError(Exception):
    """The file could not be had; the message is a clause that says why."""


def download(url: str, part: Path, label: str) -> None:
    """Bring the body of `url` to the file `part`, whole.

    `part` may hold the beginning from an earlier call that was cut. It is continued by a range request only if
    the server then named a version of the file (ETag or Last-Modified, kept in `<part>.json`) and still has that
    version; otherwise the download starts again. A connection that is cut or stalls is taken up again up to
    `ATTEMPTS` times in a row without progress.

    Raises:
        DownloadError: the server refuses, or stays silent, or the connection keeps breaking; what came is kept.
    """
    failures = 0
    while True:
        before = _have(part)
        try:
            _attempt(url, part, label)
            _note(part).unlink(missing_ok=True)
            return
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                hint = HINTS.get(error.code, "")
                raise DownloadError(f"{url} answered HTTP {error.code} {error.reason}{hint}") from None
            reason = f"HTTP {error.code} {error.reason}"
        except urllib.error.URLError as error:
            reason = str(error.reason)
        except TimeoutError:
            reason = f"nothing came for {STALL_SECONDS:g} s"
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
        failures = 1 if _have(part) > before else failures + 1
        if failures >= ATTEMPTS:
            kept = f"; {_have(part):,} bytes are kept, and the next try goes on from there" if _have(part) else ""
            raise DownloadError(f"the download from {url} failed: {reason}{kept}")
        time.sleep(PAUSE_SECONDS * failures)


def _attempt(url: str, part: Path, label: str) -> None:
    """One request, from where `part` ends; OSError or HTTPException where it breaks off."""
    have, version = _have(part), _version(part)
    headers = {"User-Agent": f"sfd/{__version__}", "Accept-Encoding": "identity"}
    if have and version:
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=STALL_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        # Nothing lies beyond what is here, so what is here is too much or of no known version: start again.
        part.unlink(missing_ok=True)
        raise OSError("the part kept from an earlier try did not fit") from None
    with response:
        if response.headers.get_content_type() == "text/html":
            raise DownloadError(f"{url} answered with a web page instead of the file (a login or proxy page?)")
        continued = response.status == 206
        if continued and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise DownloadError(f"{url} sent another range than the one asked for")
        start = have if continued else 0
        if not continued:
            # The note must never name a newer version than the bytes beside it.
            part.unlink(missing_ok=True)
            version = response.headers.get("ETag") or response.headers.get("Last-Modified")
            write_json(_note(part), {"url": url, "version": None if version and version.startswith("W/") else version})
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None else None
        units: dict[str, Any] = {"unit": "B", "unit_scale": True, "unit_divisor": 1024}
        with open(part, "ab") as file, progress(doing=label, initial=start, total=total, **units) as bar:
            while piece := response.read1(PIECE):
                file.write(piece)
                bar.update(len(piece))
        if total is not None and _have(part) != total:
            raise OSError(f"the connection was cut at {_have(part):,} of {total:,} bytes")


def _have(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _version(part: Path) -> str | None:
    return read_json(_note(part)).get("version") if _note(part).exists() else None

"""Files of Hugging Face hub repositories, through huggingface_hub and into its own cache.

It resumes, locks, and honours the user's token (`HF_TOKEN`), mirror (`HF_ENDPOINT`) and cache (`HF_HOME`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sfd_cli.weights.download import DownloadError
from sfd_cli.weights.registry import Hub


def hub_fetch(source: Hub) -> Path:
    """The file, or the folder that holds the files if there are several, all of one version of the repository.

    Raises:
        DownloadError: it cannot be had; says why.
    """
    from huggingface_hub import hf_hub_download

    root, version = Path(), None
    for path in source.paths:
        try:
            found = Path(hf_hub_download(source.repository, path, revision=version))
        except Exception as error:  # of the HTTP library below, which has changed between versions
            raise DownloadError(_reason(source, path, error)) from error
        root = found.parents[path.count("/")]
        version = root.name  # what the cache calls a folder is the commit
    return root if source.also else root / source.path


def hub_cached(source: Hub) -> Path | None:
    """As `hub_fetch`, but only if all of it is in the cache already, without the network."""
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(source.repository, path) for path in source.paths]
    if not all(isinstance(path, str) for path in found):
        return None
    first = Path(str(found[0]))
    return first.parents[source.path.count("/")] if source.also else first


def _reason(source: Hub, path: str, error: Exception) -> str:
    page = f"https://huggingface.co/{source.repository}"
    status = _status(error)
    if status == 401:
        return f"{source.repository} is private or does not exist (HTTP 401); with access to {page}, set HF_TOKEN"
    if status == 403:
        return f"{source.repository} is closed to you (HTTP 403); accept its licence on {page} and set HF_TOKEN"
    if status == 404:
        return f"the hub has no file {path} in {source.repository} (HTTP 404); look on {page}/tree/main"
    return f"{source.url(path)} could not be fetched ({' '.join(str(error).split())[:300] or type(error).__name__})"


def _status(error: BaseException | None) -> int | None:
    """HTTP status behind an error, which huggingface_hub wraps after a miss in its cache."""
    while error is not None:
        response: Any = getattr(error, "response", None)
        if response is not None:
            return int(response.status_code)
        error = error.__cause__
    return None

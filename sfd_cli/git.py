"""What git says about a folder."""

from __future__ import annotations

import subprocess
from pathlib import Path


def git(folder: Path, *words: str) -> str | None:
    """Output of a git command in the folder, or in the nearest above it that is there; None where it fails."""
    place = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.is_dir())
    try:
        done = subprocess.run(["git", *words], cwd=place, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None

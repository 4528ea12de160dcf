"""The `sfd` command: parse flags, call one stage, print its result; nothing else."""

import sys

from sfd_cli.cli import init, play, presets, schedule, study, verify, weights
from sfd_cli.cli.app import app

__all__ = ["app", "init", "main", "play", "presets", "schedule", "study", "verify", "weights"]


def main() -> None:
    """Entry point of the console script."""
    if sys.platform == "win32":
        # Locks of artifacts are fcntl's.
        sys.exit("sfd: error: Windows itself is not supported; use Linux, macOS, or WSL (`wsl --install`) on Windows")
    app()

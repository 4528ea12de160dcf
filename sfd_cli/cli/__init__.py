"""The `sfd` command: parse flags, call one stage, print its result; nothing else."""

from sfd_cli.cli import presets, schedule, study, weights
from sfd_cli.cli.app import app

__all__ = ["app", "main", "presets", "schedule", "study", "weights"]


def main() -> None:
    """Entry point of the console script."""
    app()

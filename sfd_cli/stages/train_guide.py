"""`sfd train-guide`: the weaker model that AutoGuidance guides by."""

from __future__ import annotations

from typing import Any

from sfd_cli.config import Settings
from sfd_cli.stages import train


def run(settings: Settings) -> dict[str, Any]:
    """Train into `models/guide/` from the section `guide`, as `sfd train` does from `dit`."""
    return train.run(settings, "guide")

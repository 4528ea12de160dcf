"""`sfd train`: a LightningDiT trained with the asynchronous objective."""

from __future__ import annotations

from typing import Any

from sfd_cli.config import Settings
from sfd_cli.training.transformer import train_transformer


def run(settings: Settings) -> dict[str, Any]:
    """Train into `models/dit/`, with curves and sample grids under `metrics/dit/`; the summary to print."""
    return train_transformer(settings, "dit", settings.dit, "train")

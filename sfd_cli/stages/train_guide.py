"""`sfd train-guide`: the weaker LightningDiT that guides the other one (AutoGuidance, arXiv 2406.02507)."""

from __future__ import annotations

from typing import Any

from sfd_cli.artifacts.produce import produce
from sfd_cli.artifacts.recipe import Recipe
from sfd_cli.config import Paths, Settings
from sfd_cli.processes import Processes
from sfd_cli.training.live_log import clear_log
from sfd_cli.training.transformer import train_transformer

COMMAND = "train-guide"


def run(settings: Settings) -> dict[str, Any]:
    """Train into `models/guide/`, with curves and sample grids under `metrics/guide/`; the summary to print.

    With `guide: null` only the record that there is none is written, and none where `paths.guide` is another folder,
    which may hold a guide trained elsewhere.
    """
    if settings.guide is not None:
        return train_transformer(settings, "guide", settings.guide, COMMAND)
    folder, metrics = settings.paths.guide, settings.paths.metrics
    if folder != Paths().guide:
        return {"guide": "not trained, for the section guide is null", "folder": str(folder)}
    recipe = Recipe(COMMAND, folder, {"guide": None}, {})
    produce(recipe, load=lambda processes: None, make=lambda processes, loaded: {}, metrics=metrics)
    if Processes.join().is_main:
        clear_log(metrics / "guide")
    return {"guide": "none, for the section guide is null", "folder": str(folder)}

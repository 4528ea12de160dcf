"""`sfd train-guide`: the weaker LightningDiT that guides the other one (AutoGuidance, arXiv 2406.02507)."""

from __future__ import annotations

from typing import Any

from sfd_cli.artifacts.produce import produce
from sfd_cli.artifacts.recipe import Recipe
from sfd_cli.config import DiT, Paths, Settings
from sfd_cli.distributed.processes import Processes
from sfd_cli.errors import UserError
from sfd_cli.training.inherit import settled
from sfd_cli.training.live_log import clear_log
from sfd_cli.training.transformer import train_transformer

COMMAND = "train-guide"


def run(settings: Settings) -> dict[str, Any]:
    """Train into `models/guide/`, with curves and sample grids under `metrics/guide/`; the summary to print.

    With `guide: null` only the record that there is none is written, and none where `paths.guide` is another folder,
    which may hold a guide trained elsewhere.

    Raises:
        UserError: its latents would be of another scale than those of the transformer that it is to guide.
    """
    if settings.guide is not None:
        _require_one_scale(settings.dit, settings.guide, settings.sample.guidance == "autoguidance")
        return train_transformer(settings, "guide", settings.guide, COMMAND)
    folder, metrics = settings.paths.guide, settings.paths.metrics
    if folder != Paths().guide:
        return {"guide": "not trained, for the section guide is null", "folder": str(folder)}
    recipe = Recipe(COMMAND, folder, {"guide": None}, {})
    produce(recipe, load=lambda processes: None, make=lambda processes, loaded: {}, metrics=metrics)
    if Processes.join().is_main:
        clear_log(metrics / "guide")
    return {"guide": "none, for the section guide is null", "folder": str(folder)}


def _require_one_scale(dit: DiT, guide: DiT, guides: bool) -> None:
    """Check that both inherit the statistics of their latents, or neither does, where one is to guide the other."""
    inherited = {name: settled(section).statistics == "init" for name, section in (("dit", dit), ("guide", guide))}
    if guides and inherited["dit"] != inherited["guide"]:
        one, other = ("dit", "guide") if inherited["dit"] else ("guide", "dit")
        problem = f"the statistics of latents are those of {one}.init for {one} and the images' own for {other}"
        remedy = (
            "give both an init, of models trained on the same latents, or set guide: null and sample.guidance: none"
        )
        raise UserError("guide.statistics", problem, remedy)

"""`sfd schedule inspect`: what the latents say about the order of their streams, before anything is trained."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from sfd_cli.config import Sample, Settings
from sfd_cli.data.store import Store
from sfd_cli.diffusion.schedule import schedule_of
from sfd_cli.errors import UserError
from sfd_cli.evaluation.inspection import inspect_store, law_against_level, warnings_of_oracle
from sfd_cli.evaluation.oracle import Oracle
from sfd_cli.files import write_json
from sfd_cli.laws import law_of
from sfd_cli.pipeline.models import SamplingModels
from sfd_cli.report.inspection import draw_inspection, summary
from sfd_cli.weights.models import open_dit

NAME = "inspect"


def run(settings: Settings, oracle: bool = False) -> dict[str, Any]:
    """Write `metrics/schedule/inspect.json` and `inspect.png`.

    Args:
        settings: `paths.latents` and `paths.metrics` are read, and `dit` for the law where there is no model; with
            `oracle` those of `sfd sample` and `sfd fid` too.
        oracle: also sample images with real semantics and with their own, and tell both distances.

    Returns:
        The summary to print.

    Raises:
        UserError: there is no store, or it has no semantics, or too few images; or what the oracle needs is missing.
    """
    # What the oracle needs is found, or refused, first: nothing is written before.
    models = Oracle.open(settings) if oracle else None
    found = inspect_store(Store(settings.paths.latents))
    name, section = _law(settings)
    found["law"] = {"of": name, "settings": law_of(section)} | law_against_level(schedule_of(section), found)
    if models is not None:
        found["oracle"] = models.measure()
        found["warnings"] += warnings_of_oracle(found["oracle"])
    folder = settings.paths.metrics / "schedule"
    draw_inspection(folder / f"{NAME}.png", found)
    write_json(folder / f"{NAME}.json", found)
    return summary(found) | {"file": str(folder / f"{NAME}.json"), "picture": str(folder / f"{NAME}.png")}


def _law(settings: Settings) -> tuple[str, Any]:
    """The law of the transformer that is there, else the one that is to be trained with: whose, and settings of it."""
    if settings.paths.dit.exists():
        with suppress(UserError):  # which is the concern of those who need it
            trained = SamplingModels(open_dit(settings)).trained_law
            if trained is not None:
                return str(settings.paths.dit), Sample().with_law(trained)
    return "dit in the settings", settings.dit

"""`sfd learn-schedule`: the schedule that a small network's own errors speak for, with an error bar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sfd_cli.artifacts.fingerprints import finished, finished_model
from sfd_cli.artifacts.learned_law import save_law, save_surface
from sfd_cli.artifacts.produce import produce
from sfd_cli.artifacts.recipe import Facts, Recipe
from sfd_cli.config import Settings, identity
from sfd_cli.data.store import Store
from sfd_cli.distributed.processes import Processes
from sfd_cli.errors import SettingError, UserError
from sfd_cli.files import write_json
from sfd_cli.messages import say
from sfd_cli.networks.lightning_dit import LightningDiT
from sfd_cli.report.surface import draw_surface
from sfd_cli.training.error_surface import choose, measure
from sfd_cli.training.live_log import clear_log
from sfd_cli.training.probe_task import ProbeTask
from sfd_cli.training.transformer import train_transformer
from sfd_cli.training.validation import shared_clusters
from sfd_cli.weights.models import Model, open_model, space_of

COMMAND = "learn-schedule"


def run(settings: Settings) -> dict[str, Any]:
    """Train the probe into `models/probe/`, judge schedules by its errors, and write `models/schedule/`.

    Unless `schedule.learn` is true, only records that there is no schedule are written.

    Returns:
        The summary to print.

    Raises:
        UserError: an input is missing or does not fit, or too few images are held out to judge by.
        StageFailure: the probe's loss was not finite for several steps in a row.
    """
    paths, section = settings.paths, settings.schedule
    if not section.learn:
        return _none(settings)
    train_transformer(settings, "probe", section.probe, f"{COMMAND}-probe")
    inputs = {
        "latents": finished(paths.latents, "sfd encode-latents").fingerprint,
        "probe": finished_model(_probe(settings), "sfd learn-schedule"),
    }
    facts = produce(
        Recipe(COMMAND, paths.schedule, identity(section, exclude={"probe", "learn"}), inputs),
        load=lambda processes: _load(settings, processes),
        make=lambda processes, loaded: _make(settings, *loaded, processes),
        metrics=paths.metrics,
        can_mend=lambda _: True,
    )
    return facts | {"folder": str(paths.schedule), "picture": str(_picture(settings))}


def _none(settings: Settings) -> dict[str, Any]:
    paths = settings.paths
    for folder, command in ((paths.probe, f"{COMMAND}-probe"), (paths.schedule, COMMAND)):
        recipe = Recipe(command, folder, {"schedule": None}, {})
        produce(recipe, load=lambda processes: None, make=lambda processes, loaded: {}, metrics=paths.metrics)
    if Processes.join().is_main:
        for folder in (paths.metrics / "probe", paths.metrics / "learn_schedule"):
            clear_log(folder)
    return {"schedule": "not learned, for schedule.learn is false", "folder": str(paths.schedule)}


def _load(settings: Settings, processes: Processes) -> tuple[ProbeTask, LightningDiT]:
    device, store = processes.device(settings.runtime.device), Store(settings.paths.latents)
    task, probe = ProbeTask(store, settings.schedule.probe, device, shared_clusters(store, processes)), _probe(settings)
    task.space = space_of(probe)
    return task, probe.load().to(device)


def _probe(settings: Settings) -> Model[LightningDiT]:
    return open_model(settings.paths.probe, LightningDiT, weights="ema")


def _make(settings: Settings, task: ProbeTask, model: LightningDiT, processes: Processes) -> Facts:
    section, folder = settings.schedule, settings.paths.schedule
    try:
        measured = measure(section, task, model, processes)
        law, found = choose(section, measured, task.space)
    except SettingError as error:
        raise UserError(f"schedule.probe.{error.subject}", error.problem, error.remedy) from None
    except ValueError as error:
        raise UserError("schedule.probe.holdout", str(error), "hold out more images") from None
    if processes.is_main:
        save_surface(folder, *measured)
        save_law(folder, law)
        draw_surface(_picture(settings), measured.surface, law, found)
        told = "clearly better than" if found.is_clear else "not clearly better than"
        gap = f"{found.gap:.3g} nats an image, +- {found.standard_error:.2g}"
        say(f"the best schedule is {told} the synchronous one: {gap}")
    facts = {"law": law} | found._asdict() | {"is_clear": found.is_clear, "images": len(measured.surface.clusters)}
    if processes.is_main:
        write_json(_picture(settings).parent / "metrics.json", facts)
    return facts


def _picture(settings: Settings) -> Path:
    return settings.paths.metrics / "learn_schedule" / "surface.png"

"""`sfd report`: one self-contained page on what was trained, what came out and how good it is."""

from __future__ import annotations

import time
from typing import Any

from sfd_cli import __version__
from sfd_cli.artifacts.learned_law import with_learned_law
from sfd_cli.artifacts.recipe import SETTINGS
from sfd_cli.config import DiT, Settings
from sfd_cli.errors import UserError
from sfd_cli.files import atomic_path, write_json
from sfd_cli.laws import is_synchronous
from sfd_cli.messages import say
from sfd_cli.progress import progress
from sfd_cli.report import parts
from sfd_cli.report.page import render_page
from sfd_cli.report.tables import facts, setting_tables


def run(settings: Settings) -> dict[str, Any]:
    """Write `reports/index.html` and its pictures, `samples.png`, `trajectory.png` and `schedule.png`.

    What cannot be shown yet is named on the page with the reason. Nothing on it depends on the clock, so that equal
    runs make equal pages; `sfd show` tells the times. Returns the page and its size in bytes.

    Raises:
        UserError: the folder holds something else than an earlier report.
    """
    started = time.monotonic()
    folder, metrics = settings.paths.reports, settings.paths.metrics
    if folder.exists() and any(folder.iterdir()) and not (folder / SETTINGS).exists():
        problem = "holds files that this program did not make"
        raise UserError(folder, problem, "give another path, or move them away")
    # First, so that what a killed run leaves is known for a report.
    write_json(folder / SETTINGS, settings.report.model_dump(mode="json"))
    with progress(total=4, doing="report", unit="part") as bar:
        samples = parts.sample_grid(settings, folder / "samples.png")
        bar.update()
        phases = parts.trajectory(settings, folder / "trajectory.png")
        bar.update()
        scores = parts.scores(settings)
        bar.update()
        learned = parts.learned_schedule(settings, folder / "schedule.png")
        bar.update()
    page = render_page(
        title=settings.report.title,
        subtitle=_subtitle(settings),
        version=__version__,
        facts=facts(settings),
        samples=samples,
        phases=phases,
        scores=scores,
        along=parts.along_training(metrics),
        schedule=parts.schedule(metrics),
        learned=learned,
        losses=parts.losses(metrics),
        settings=setting_tables(settings),
    )
    with atomic_path(folder / "index.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    seconds = round(time.monotonic() - started, 2)
    write_json(metrics / "timings" / "report.json", [{"seconds": seconds, "resumed": False}])
    for reason in {samples.reason, phases.reason, scores["reason"], learned["reason"] if learned else ""} - {""}:
        say(f"not on the page: {reason}")
    return {"page": str(folder / "index.html"), "bytes": len(page.encode())}


def _subtitle(settings: Settings) -> str:
    """What the page is about: semantics are ahead by the schedule, or by textures that are made smaller, or not."""
    if not is_synchronous(_resolved(settings)):
        return "Semantics first: one flow, two streams, textures following (arXiv 2512.04926)."
    if settings.dit.semantics and settings.latents.texture_gain < 1:
        return "Semantics first: one flow, two streams, textures smaller and so behind (after arXiv 2512.04926)."
    return "A system that Semantic-First Diffusion (arXiv 2512.04926) is compared with."


def _resolved(settings: Settings) -> DiT:
    """The section of the transformer with the numbers of a learned law, where they are there already."""
    try:
        return with_learned_law(settings.dit, settings.paths.schedule)
    except UserError:
        return settings.dit

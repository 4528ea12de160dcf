"""`sfd report`: one self-contained page on what was trained, what came out, how good it is and how long it took."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from tqdm import tqdm

from sfd_cli import __version__
from sfd_cli.artifacts.sampled import Sampled
from sfd_cli.config import Settings
from sfd_cli.data.images import decode_image
from sfd_cli.diffusion.schedule import Schedule
from sfd_cli.errors import UserError
from sfd_cli.files import atomic_path, read_json, write_json
from sfd_cli.messages import say
from sfd_cli.pipeline.trajectory import follow_samples
from sfd_cli.report.curves import draw_curves, read_curves
from sfd_cli.report.page import picture_uri, render_page
from sfd_cli.report.pictures import draw_samples, draw_trajectory
from sfd_cli.report.tables import facts, score_tables, setting_tables, timing_rows

LOGS = {"semvae": "Semantic VAE", "texture_vae": "Texture VAE", "dit": "Diffusion transformer", "guide": "Guide"}


def run(settings: Settings) -> dict[str, Any]:
    """Write `reports/index.html`, `reports/samples.png` and `reports/trajectory.png`.

    A part that cannot be shown yet is named on the page with the reason, so that the page may be made at any
    time.

    Returns:
        The files written, and what is missing.
    """
    started = time.monotonic()
    folder = settings.paths.reports
    folder.mkdir(parents=True, exist_ok=True)
    parts = (
        lambda: _samples(settings, folder / "samples.png"),
        lambda: _phases(settings, folder / "trajectory.png"),
        lambda: _scores(settings),
    )
    samples, phases, scores = (make() for make in tqdm(parts, "report", unit="part", disable=None))
    write_json(
        settings.paths.metrics / "timings" / "report.json",
        [{"seconds": round(time.monotonic() - started, 2), "resumed": False}],
    )
    timings, total = timing_rows(settings.paths.metrics / "timings")
    page = render_page(
        title=settings.report.title,
        subtitle=_subtitle(settings),
        version=__version__,
        facts=facts(settings, total),
        samples=samples,
        phases=phases,
        scores=scores,
        losses=_losses(settings.paths.metrics),
        timings=timings,
        total_seconds=total,
        settings=setting_tables(settings),
    )
    write_json(folder / "settings.json", settings.report.model_dump(mode="json"))
    with atomic_path(folder / "index.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    for reason in {part["reason"] for part in (samples, phases, scores)} - {""}:
        say(f"not on the page: {reason}")
    return {"page": str(folder / "index.html"), "bytes": len(page.encode())}


def _subtitle(settings: Settings) -> str:
    if settings.dit.delta_t:
        return "Semantics first: one flow, two streams, textures following by an offset (arXiv 2512.04926)."
    return "A system that Semantic-First Diffusion (arXiv 2512.04926) is compared with."


def spread_over_classes(labels: list[int], count: int) -> list[int]:
    """Indices of `count` samples, the classes as evenly as can be, sorted by class.

    With more classes than that, evenly spaced classes with one sample each.
    """
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    classes = sorted(members)
    if len(classes) > count:
        classes = [classes[position * len(classes) // count] for position in range(count)]
    chosen: list[int] = []
    depth = 0
    while len(chosen) < min(count, sum(len(members[label]) for label in classes)):
        chosen += [members[label][depth] for label in classes if depth < len(members[label])]
        depth += 1
    return sorted(chosen[:count], key=lambda index: (labels[index], index))


def _samples(settings: Settings, path: Path) -> dict[str, Any]:
    try:
        samples = Sampled.open(settings.paths.samples)
    except UserError as error:
        return {"picture": None, "reason": str(error)}
    chosen = spread_over_classes(samples.labels, settings.report.grid_images)
    names = samples.class_names
    captions = [names[samples.labels[index]] if names else samples.files[index].stem for index in chosen]
    draw_samples(path, [np.asarray(decode_image(samples.files[index])) for index in chosen], captions)
    caption = f"{len(chosen)} of {len(samples.files):,} samples: the first of each class, not picked by eye."
    return {"picture": picture_uri(path), "caption": caption, "reason": ""}


def _phases(settings: Settings, path: Path) -> dict[str, Any]:
    try:
        samples = Sampled.open(settings.paths.samples)
        chosen = spread_over_classes(samples.labels, settings.report.trajectory_images)
        trajectory, schedule = follow_samples(settings, samples, chosen)
    except UserError as error:
        return {"picture": None, "reason": str(error)}
    draw_trajectory(path, trajectory, schedule)
    semantics = bool(trajectory.semantics.shape[2])
    caption = "The same samples at several points of the schedule. Texture: the texture latent as it is at T, decoded."
    if semantics:
        caption += (
            " Semantics: the semantic latent as it is at T, its first three principal components as red, green and"
            " blue; components and ranges are those of the finished semantics."
        )
    story = tell_phases(schedule, semantics)
    return {"picture": picture_uri(path), "story": story, "caption": caption, "reason": ""}


def tell_phases(schedule: Schedule, semantics: bool) -> str:
    """Which latent moves when, in words; without `semantics` there is only that of the textures."""
    if not semantics:
        return "Sampling runs along one progress T, from noise at T = 0 to the image at T = 1."
    moving = {
        (True, True): "both latents move",
        (False, True): "only the semantic latent moves",
        (True, False): "only the texture latent moves",
    }
    parts = [f"up to T = {phase.end:g} {moving[phase.moves]}" for phase in schedule.phases]
    return f"Sampling runs along one progress T: {', '.join(parts)}."


def _scores(settings: Settings) -> dict[str, Any]:
    path = settings.paths.metrics / "fid.json"
    if not path.exists():
        return {"rows": [], "reason": "There are no scores yet; run `sfd fid`."}
    scores = read_json(path)
    tables = score_tables(scores)
    if scores.get("used", {}).get("samples") != _description(settings):
        tables["notes"].insert(0, "These scores are of other samples than those shown above; run `sfd fid` again.")
    return tables


def _description(settings: Settings) -> str:
    try:
        return Sampled.open(settings.paths.samples).description
    except UserError:
        return ""


def _losses(metrics: Path) -> list[Markup]:
    """A picture of the losses of every network whose training has been logged."""
    pictures = []
    for name, title in LOGS.items():
        curves = read_curves(metrics / name)
        if curves:
            pictures.append(Markup(draw_curves(title, curves, identity=name)))
    return pictures

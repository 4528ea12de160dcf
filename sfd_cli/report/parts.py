"""The parts of the page: what each shows, or why it cannot be shown yet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from sfd_cli.artifacts.learned_law import read_surface, with_learned_law
from sfd_cli.artifacts.recipe import Record
from sfd_cli.artifacts.sample_folder import Samples
from sfd_cli.config import DiT, Settings
from sfd_cli.data.images import decode_image
from sfd_cli.diffusion.latents import Streams
from sfd_cli.diffusion.path_criterion import Preference
from sfd_cli.diffusion.schedule import Schedule
from sfd_cli.errors import UserError
from sfd_cli.evaluation.curve import FOLDER, MEAN, MINIMUM, SPREAD, STEP, TABLE, distances, read_table
from sfd_cli.files import read_as
from sfd_cli.laws import LEARNED, law_of
from sfd_cli.pipeline.trajectory import follow_samples
from sfd_cli.report import inspection
from sfd_cli.report.curves import Curve, draw_curves, read_curves, read_validation
from sfd_cli.report.page import picture_uri
from sfd_cli.report.pictures import draw_samples, draw_trajectory
from sfd_cli.report.score_table import score_tables
from sfd_cli.report.surface import draw_surface, surface_summary

LOGS = {
    "semvae": "Semantic VAE",
    "texture_vae": "Texture codec",
    "probe": "Probe of the schedule",
    "dit": "Diffusion transformer",
    "guide": "Guide",
}


@dataclass(frozen=True)
class Picture:
    """A picture (data URI of a PNG) with a story above it and a caption below, or the reason why there is none."""

    picture: str = ""
    caption: str = ""
    story: str = ""
    reason: str = ""


def sample_grid(settings: Settings, path: Path) -> Picture:
    """The first samples of each class; also written to `path`."""
    try:
        samples = Samples.open(settings.paths.samples)
    except UserError as error:
        return Picture(reason=str(error))
    chosen = spread_over_classes(samples.labels, settings.report.grid_images)
    names = samples.class_names
    captions = [names[samples.labels[index]] if names else samples.files[index].stem for index in chosen]
    draw_samples(path, [np.asarray(decode_image(samples.files[index])) for index in chosen], captions)
    caption = f"{len(chosen)} of {len(samples.files):,} samples: the first of each class, not picked by eye."
    return Picture(picture_uri(path), caption)


def trajectory(settings: Settings, path: Path) -> Picture:
    """A few samples on their way from noise, sampled once more; also written to `path`."""
    try:
        samples = Samples.open(settings.paths.samples)
        chosen = spread_over_classes(samples.labels, settings.report.trajectory_images)
        found, schedule = follow_samples(settings, samples, chosen)
    except UserError as error:
        return Picture(reason=str(error))
    draw_trajectory(path, found, schedule)
    semantics = bool(found.semantics.shape[2])
    caption = "The same samples at several points of the schedule. Texture: the texture latent as it is at T, decoded."
    if semantics:
        caption += (
            " Semantics: the semantic latent as it is at T, its first three principal components as red, green and"
            " blue; components and ranges are those of the finished semantics."
        )
    return Picture(picture_uri(path), caption, tell_phases(schedule, semantics))


def scores(settings: Settings) -> dict[str, Any]:
    """Tables of the scores, with a warning where they are of other samples than those shown."""
    path = settings.paths.metrics / "fid.json"
    if not path.exists():
        return {"rows": [], "reason": "There are no scores yet; run `sfd fid`."}
    found = read_as(dict[str, Any], path)
    tables = score_tables(found)
    try:
        shown = Samples.open(settings.paths.samples).description
    except UserError:
        shown = ""
    if found.get("used", {}).get("samples") != shown:
        tables["notes"].insert(0, "These scores are of other samples than those shown above; run `sfd fid` again.")
    return tables


def losses(metrics: Path) -> list[Markup]:
    """A picture of the losses of every network whose training has been logged, and one of each validated stream.

    Losses that fall below zero have a picture of their own, so that the others are on a logarithmic scale.
    """
    pictures = []
    for name, title in LOGS.items():
        curves = read_curves(metrics / name)
        if above := [curve for curve in curves if curve.is_positive]:
            pictures.append(draw_curves(title, above, identity=name))
        if below := [curve for curve in curves if not curve.is_positive]:
            pictures.append(draw_curves(f"{title}, what falls below zero", below, identity=f"{name}-below"))
        for stream in Streams._fields:
            held_out, training = read_validation(metrics / name, stream)
            if held_out:
                heading = f"{title}, {stream} error, held out (dashed: trained on)"
                pictures.append(draw_curves(heading, held_out, f"{name}-{stream}", dashed=training))
    return [Markup(picture) for picture in pictures]


def along_training(metrics: Path) -> list[Markup]:
    """A picture of each Fréchet distance that `sfd curve` found along the training; none where it was not run."""
    table = metrics / FOLDER / TABLE
    columns = read_table(table) if table.exists() else {}
    steps = np.array(columns.get(STEP, []))
    if len(steps) < 2:
        return []
    pictures = []
    for key, label in distances(columns).items():
        mean, least = (Curve(label, steps, np.array(columns[key + end])) for end in (MEAN, MINIMUM))
        repeated = [] if np.isnan(columns[key + SPREAD]).all() else [least]
        pictures.append(draw_curves("Along the training", [mean], f"along-{key}", dashed=repeated, window=1))
    return [Markup(picture) for picture in pictures]


def schedule(metrics: Path) -> dict[str, Any] | None:
    """What `sfd schedule inspect` found: its picture, table and warnings; None where it was not run."""
    folder = metrics / "schedule"
    if not ((folder / "inspect.json").exists() and (folder / "inspect.png").exists()):
        return None
    table = inspection.summary(read_as(dict[str, Any], folder / "inspect.json"))
    warnings = table.pop("warning")
    rows = [
        (name, part, value)
        for name, found in table.items()
        for part, value in (found.items() if isinstance(found, dict) else [("", found)])
    ]
    picture = picture_uri(folder / "inspect.png")
    return {"picture": picture, "rows": rows, "warnings": list(warnings.values()) if warnings != "none" else []}


def learned_schedule(settings: Settings, path: Path) -> dict[str, Any] | None:
    """What `sfd learn-schedule` found, its picture also written to `path`; None where no schedule was learned."""
    folder = settings.paths.schedule
    record = Record.read(folder)
    if record is None or not record.facts:
        return None
    try:
        law, surface = law_of(with_learned_law(DiT(schedule=LEARNED), folder)), read_surface(folder)
    except UserError as error:
        return {"reason": str(error)}
    found = Preference(**{name: record.facts[name] for name in Preference._fields if name in record.facts})
    draw_surface(path, surface, law, found)
    rows = surface_summary(law, found, record.facts["images"], surface)
    return {"picture": picture_uri(path), "rows": rows, "followed": settings.dit.schedule == LEARNED, "reason": ""}


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


def tell_phases(schedule: Schedule, semantics: bool) -> str:
    """Which latent moves when, in words; without `semantics` there is only the texture latent."""
    if not semantics:
        return f"Sampling runs along one progress T, from noise at T = 0 to the image at T = {schedule.end:g}."
    moving = {
        (True, True): "both latents move",
        (False, True): "only the semantic latent moves",
        (True, False): "only the texture latent moves",
    }
    phases = [f"up to T = {phase.end:g} {moving[phase.moves]}" for phase in schedule.phases]
    return f"Sampling runs along one progress T: {', '.join(phases)}."

"""What the viewer on the page is given of a drawing: plain values, of which it makes no decisions."""

from __future__ import annotations

import base64
import io
import re
from typing import Any

import numpy as np
import torch
from PIL import Image

from sfd_cli.diffusion.schedule import Phase, Schedule
from sfd_cli.play.picture import Picture, as_png
from sfd_cli.play.studio import Drawing, Studio
from sfd_cli.report.pictures import BOTH, SEMANTIC, TEXTURE, shorten

WIDTH, HEIGHT = 300, 64  # of the picture of the schedule, in SVG units
ROOM = 60
"""Width that the name of a phase takes."""


def view(studio: Studio, drawing: Drawing, name: str) -> dict[str, Any]:
    """A drawing for the viewer.

    Args:
        studio: where it was drawn.
        drawing: the drawing.
        name: of its place on the page.

    Returns:
        `name`, `title` and `told` in words; `frames` and `maps`, data URIs of PNGs, of which the last frame has the
        settings inside; `file`, a name to save it under; `parts`, where on the way from 0 to 1 every frame is;
        `readings`, a line about each; `schedule`, an SVG element; `grid`, cells along one side.
    """
    picture, schedule = drawing.picture, drawing.schedule
    colours = studio.colours(drawing)
    last = as_png(drawing.image, picture, studio.about)
    return {
        "name": name,
        "title": f"{shorten(studio.classes[picture.label], 28)} · seed {picture.sample.seed}",
        "told": tell(studio, picture),
        "frames": [*(_uri(_png(frame)) for frame in drawing.textures[:-1]), _uri(last)],
        "maps": [] if colours is None else [_uri(_png(colour)) for colour in colours],
        "file": file_name(studio, picture),
        "parts": [progress / schedule.end for progress in drawing.progress],
        "readings": [read(schedule, progress, colours is not None) for progress in drawing.progress],
        "schedule": draw_schedule(schedule, colours is not None),
        "grid": studio.sampler.space.grid,
        "side": drawing.image.shape[0],
    }


def tell(studio: Studio, picture: Picture) -> str:
    """The settings of a picture in a line."""
    sample, ahead = picture.sample, studio.ahead
    parts = []
    if ahead is not None:
        parts.append(f"{ahead.label} {getattr(sample, ahead.key):g}")
    parts.append("no guidance" if sample.guidance == "none" else f"{sample.guidance} {sample.scale:g}")
    parts.append(f"{sample.steps} steps")
    if picture.kept is not None:
        parts.append(tell_kept(studio, picture))
    return ", ".join(parts)


def tell_kept(studio: Studio, picture: Picture) -> str:
    """What a picture keeps of another, in words; empty where it keeps nothing."""
    kept = picture.kept
    if kept is None:
        return ""
    what = {"both": "all", "textures": "textures", "semantics": "semantics"}[kept.streams]
    if kept.cells is not None:
        top, bottom, left, right = (number + 1 for number in kept.cells)
        where = f"rows {top} to {bottom}, columns {left} to {right}"
        what += f" in {where}" if kept.inside else f" but {where}"
    source = kept.of
    return f"keeps {what} of {shorten(studio.classes[source.label])}, seed {source.sample.seed}"


def file_name(studio: Studio, picture: Picture) -> str:
    """A name for the PNG: class, seed, and what tells it from others of the same."""
    words = re.sub(r"\W+", "-", shorten(studio.classes[picture.label])).strip("-") or str(picture.label)
    return f"{words}-{picture.sample.seed}-{picture.key[:6]}.png"


def read(schedule: Schedule, progress: float, semantics: bool) -> str:
    """Where both streams are at T, and which of them move there."""
    times = schedule.times(torch.tensor(progress, dtype=torch.float64))
    said = f"T {progress:.2f} · textures {times.texture.item():.0%}"
    if not semantics:
        return said
    return f"{said} · semantics {times.semantic.item():.0%} · {phase_name(_phase_at(schedule, progress))}"


def phase_name(phase: Phase) -> str:
    """Which streams move in it."""
    if all(phase.moves):
        return "both"
    return "textures only" if phase.moves.texture else "semantics only"


def draw_schedule(schedule: Schedule, semantics: bool) -> str:
    """Both streams' times along T with the phases behind them, as an SVG element; a line of class `now` marks T = 0."""
    parts = []
    for phase in schedule.phases if semantics else ():
        start, width = WIDTH * phase.start / schedule.end, WIDTH * (phase.end - phase.start) / schedule.end
        name = phase_name(phase)
        colour = {"both": BOTH, "textures only": TEXTURE, "semantics only": SEMANTIC}[name]
        parts.append(f'<rect x="{start:.1f}" width="{width:.1f}" height="{HEIGHT}" fill="{colour}" opacity=".14"/>')
        if width >= ROOM:
            parts.append(
                f'<text x="{start + width / 2:.1f}" y="9" text-anchor="middle" font-size="8" fill="{colour}">'
                f"{name}</text>"
            )
    line = np.linspace(0, schedule.end, 101)
    times = schedule.times(torch.from_numpy(line))
    for values, colour in ((times.semantic, SEMANTIC), (times.texture, TEXTURE))[0 if semantics else 1 :]:
        pairs = zip(line / schedule.end, values.tolist(), strict=True)
        points = " ".join(f"{WIDTH * x:.1f},{HEIGHT - 2 - (HEIGHT - 18) * y:.1f}" for x, y in pairs)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
    parts.append(f'<line class="now" x1="0" x2="0" y1="0" y2="{HEIGHT}" stroke="currentColor" stroke-width="1.5"/>')
    label = "times of semantics and textures, and the phases" if semantics else "time of the textures"
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _phase_at(schedule: Schedule, progress: float) -> Phase:
    """The phase that begins or goes on at T; at the end, the last."""
    return [phase for phase in schedule.phases if phase.start <= progress][-1]


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()

"""The report page: one HTML file with everything inside it, no scripts, light and dark."""

from __future__ import annotations

import base64
from importlib import resources
from math import log
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from sfd_cli.messages import printable

WIDTH, HEIGHT, LEFT, RIGHT, BASE = 640, 112, 24, 616, 50  # of the ruler, in SVG units
SMALLEST = 1e-4
"""Part of the largest distance below which distances are not told apart on the ruler."""


def picture_uri(path: Path) -> str:
    """A PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(Path(path).read_bytes()).decode()


def render_page(**content: Any) -> str:
    """Fill the template; all but `Markup` is escaped, control characters too; a missing name is an error."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    template = resources.files("sfd_cli.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(**content)


class Marks(NamedTuple):
    """Distances on one scale: of other real images, of real images through the autoencoder, samples, and noise."""

    real: float
    autoencoder: float | None
    samples: float
    untrained: float


def draw_ruler(marks: Marks) -> Markup:
    """A line from floor (real images) to ceiling (an untrained model) with the samples' place on it, as SVG.

    By the logarithm of the distance: a ceiling is a hundred times the floor, and what lies between crowds at its foot.
    """
    there = [distance for distance in marks if distance is not None]
    least = max(*there, 1e-12) * SMALLEST
    low, high = (log(max(extreme, least)) for extreme in (min(there), max(there)))

    def mark(name: str, distance: float, colour: str, y: int, size: int) -> str:
        x = LEFT + (RIGHT - LEFT) * (log(max(distance, least)) - low) / max(high - low, 1e-12)
        middle = (LEFT + RIGHT) / 2
        anchor = "start" if x < middle * 0.35 else "end" if x > middle * 1.65 else "middle"
        return (
            f'<circle cx="{x:.1f}" cy="{BASE}" r="{size}" fill="var(--{colour})"/><text x="{x:.1f}" y="{y}" '
            f'text-anchor="{anchor}" font-size="15" fill="currentColor">{name} {distance:.4g}</text>'
        )

    returned = ""
    if marks.autoencoder is not None:
        returned = mark("real through the autoencoder", marks.autoencoder, "semantic", BASE + 48, 6)
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="samples {marks.samples:.4g}, between real {marks.real:.4g} and untrained {marks.untrained:.4g}">'
        f'<line x1="{LEFT}" y1="{BASE}" x2="{RIGHT}" y2="{BASE}" stroke="var(--line)" stroke-width="4"/>'
        f"{mark('real', marks.real, 'good', BASE + 28, 6)}{mark('untrained', marks.untrained, 'soft', BASE + 28, 6)}"
        f"{returned}{mark('samples', marks.samples, 'texture', BASE - 16, 8)}</svg>"
    )

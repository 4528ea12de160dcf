"""The report page: one HTML file with everything inside it, no scripts, light and dark."""

from __future__ import annotations

import base64
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

RULER = {"width": 640, "height": 92, "left": 24, "right": 616, "base": 50}


def picture_uri(path: Path) -> str:
    """A PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(Path(path).read_bytes()).decode()


def render_page(**content: Any) -> str:
    """Fill the template. Everything is escaped but what is `Markup`: drawings made here.

    A name that the template uses and `content` lacks is an error, not a blank.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = resources.files("sfd_cli.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(**content)


def draw_ruler(floor: float, value: float, ceiling: float) -> Markup:
    """A line from floor (real images) to ceiling (an untrained model) with the samples' place on it, as SVG."""
    left, right, base = RULER["left"], RULER["right"], RULER["base"]
    low, high = min(floor, value), max(ceiling, value)

    def place(distance: float) -> float:
        return left + (right - left) * (distance - low) / max(high - low, 1e-12)

    marks = [
        _mark(place(floor), base, f"real {floor:.4g}", "var(--good)", above=False),
        _mark(place(ceiling), base, f"untrained {ceiling:.4g}", "var(--soft)", above=False),
        _mark(place(value), base, f"samples {value:.4g}", "var(--texture)", above=True),
    ]
    line = f'<line x1="{left}" y1="{base}" x2="{right}" y2="{base}" stroke="var(--line)" stroke-width="4"/>'
    return Markup(
        f'<svg viewBox="0 0 {RULER["width"]} {RULER["height"]}" role="img" '
        f'aria-label="samples {value:.4g}, between real {floor:.4g} and untrained {ceiling:.4g}">'
        f"{line}{''.join(marks)}</svg>"
    )


def _mark(x: float, base: float, text: str, colour: str, above: bool) -> str:
    y = base - 16 if above else base + 28
    middle = (RULER["left"] + RULER["right"]) / 2
    anchor = "start" if x < middle * 0.35 else "end" if x > middle * 1.65 else "middle"
    size = 8 if above else 6
    return (
        f'<circle cx="{x:.1f}" cy="{base}" r="{size}" fill="{colour}"/>'
        f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}" font-size="15" fill="currentColor">{text}</text>'
    )

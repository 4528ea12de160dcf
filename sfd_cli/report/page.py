"""The report page: one HTML file with everything inside it, no scripts, light and dark."""

from __future__ import annotations

import base64
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sfd_cli.messages import printable

WIDTH, HEIGHT, LEFT, RIGHT, BASE = 640, 92, 24, 616, 50  # of the ruler, in SVG units


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


def draw_ruler(floor: float, value: float, ceiling: float) -> Markup:
    """A line from floor (real images) to ceiling (an untrained model) with the samples' place on it, as SVG."""
    low, high = min(floor, value), max(ceiling, value)

    def mark(name: str, distance: float, colour: str, y: int, size: int) -> str:
        x = LEFT + (RIGHT - LEFT) * (distance - low) / max(high - low, 1e-12)
        middle = (LEFT + RIGHT) / 2
        anchor = "start" if x < middle * 0.35 else "end" if x > middle * 1.65 else "middle"
        return (
            f'<circle cx="{x:.1f}" cy="{BASE}" r="{size}" fill="var(--{colour})"/><text x="{x:.1f}" y="{y}" '
            f'text-anchor="{anchor}" font-size="15" fill="currentColor">{name} {distance:.4g}</text>'
        )

    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="samples {value:.4g}, between real {floor:.4g} and untrained {ceiling:.4g}">'
        f'<line x1="{LEFT}" y1="{BASE}" x2="{RIGHT}" y2="{BASE}" stroke="var(--line)" stroke-width="4"/>'
        f"{mark('real', floor, 'good', BASE + 28, 6)}{mark('untrained', ceiling, 'soft', BASE + 28, 6)}"
        f"{mark('samples', value, 'texture', BASE - 16, 8)}</svg>"
    )

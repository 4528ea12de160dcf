"""Training logs as inline SVG: lines that take the page's own text colour, in light and in dark."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfd_cli.errors import UserError

# Matplotlib needs a colour: this one is replaced by the page's text colour after drawing.
TEXT = "#010203"
NOT_LOSSES = {"learning_rate", "gradient_norm"}
VALIDATED = ("validation_", "training_")
"""What names of errors on held-out images begin with, and those of the same errors on training images."""
WINDOW = 15
COLOURS = ("#3b82c4", "#d9822b", "#3f9d63", "#b65fc0", "#c9504d", "#8a7a3d", "#4aa6a8")


@dataclass(frozen=True)
class Curve:
    """One logged quantity: `steps` and `values`, equally long."""

    name: str
    steps: np.ndarray
    values: np.ndarray

    @property
    def is_positive(self) -> bool:
        """Whether all its values have a place on a logarithmic scale."""
        return bool((self.values > 0).all())


def read_curves(folder: Path) -> list[Curve]:
    """The losses of training that dvclive logged under `folder`: what is minimised first, then its terms by name.

    dvclive keeps one TSV per quantity under `plots/metrics`, with the columns `step`, `timestamp` (sometimes)
    and the quantity.

    Raises:
        UserError: a file is not such a table; names it.
    """
    found = [path for path in _logs(folder) if path.stem not in NOT_LOSSES and not path.stem.startswith(VALIDATED)]
    return [_read(path) for path in sorted(found, key=lambda path: (path.stem != "loss", path))]


def read_validation(folder: Path, stream: str) -> tuple[list[Curve], list[Curve]]:
    """The errors of a stream on held-out images and those on training images, of the same parts in the same order.

    Raises:
        UserError: a file is not a log of dvclive; names it.
    """
    held_out, training = (
        [_read(path) for path in sorted(_logs(folder)) if path.stem.startswith(prefix + stream)] for prefix in VALIDATED
    )
    return held_out, training


def _logs(folder: Path) -> list[Path]:
    return list((Path(folder) / "plots" / "metrics").rglob("*.tsv"))


def _read(path: Path) -> Curve:
    try:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        value = next(key for key in (rows[0] if rows else {}) if key not in ("step", "timestamp"))
        steps = np.array([int(float(row["step"])) for row in rows])
        values = np.array([float(row[value]) for row in rows])
    except (StopIteration, KeyError, ValueError, TypeError):
        raise UserError(path, "is not a log of dvclive", "delete it or train again") from None
    return Curve(path.stem.replace("_", " "), steps, values)


def draw_curves(
    title: str, curves: list[Curve], identity: str, dashed: Sequence[Curve] = (), window: int = WINDOW
) -> str:
    """At least one curve over steps, also smoothed, as an SVG element; logarithmic where all are positive.

    `identity` makes the element ids differ from those of other pictures on the page. `dashed` are the same quantities
    of other images, in the same colours. `window` is that of `smooth`; 1 smooths nothing.
    """
    import matplotlib

    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": identity, "font.size": 9, "font.family": "sans-serif"}
    with matplotlib.rc_context(settings):
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        figure = Figure(figsize=(5.2, 2.9), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        for curve, colour in zip(curves, COLOURS * (len(curves) // len(COLOURS) + 1), strict=False):
            axes.plot(curve.steps, curve.values, color=colour, alpha=0.28, linewidth=0.8)
            axes.plot(curve.steps, smooth(curve.values, window), color=colour, linewidth=1.6, label=curve.name)
        for curve, colour in zip(dashed, COLOURS * (len(dashed) // len(COLOURS) + 1), strict=False):
            axes.plot(curve.steps, curve.values, color=colour, linewidth=1.2, linestyle="--")
        if all(curve.is_positive for curve in [*curves, *dashed]):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_title(title, color=TEXT, fontsize=10, loc="left")
        axes.set_xlabel("step", color=TEXT)
        axes.tick_params(colors=TEXT, which="both", labelsize=8)
        axes.grid(color="#888888", alpha=0.25, linewidth=0.5)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color("#888888")
        axes.legend(frameon=False, labelcolor=TEXT, fontsize=8)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    # Matplotlib numbers its elements from 1 in every picture.
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{identity}-", text)
    return text[text.index("<svg") :].replace(TEXT, "currentColor")


def smooth(values: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """Centred running mean over up to `window` points, shorter at the ends."""
    reach = min(window, max(len(values) // 4, 1)) // 2
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - reach, 0), np.minimum(index + reach + 1, len(values))
    return (total[high] - total[low]) / (high - low)

"""Pictures of samples: the grid by class, and their way from noise, phase by phase."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sfd_cli.diffusion.schedule import Schedule
from sfd_cli.files import atomic_path
from sfd_cli.messages import printable
from sfd_cli.report.palette import Palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sfd_cli.pipeline.trajectory import Trajectory

TEXTURE, SEMANTIC, BOTH = "#d9822b", "#3b82c4", "#7a6f9b"
DPI = 150


def principal_colours(latents: np.ndarray) -> np.ndarray:
    """Semantic latents as colours: their first three principal components.

    The components and their ranges (2nd to 98th percentile) come from the last point, the finished
    semantics, so that a colour means the same direction at every point.

    Args:
        latents: (points, samples, C_s, h, w).

    Returns:
        float32 (points, samples, h, w, 3) in [0, 1]; with fewer than three channels the rest stays 0.5.
    """
    return Palette.of(latents[-1]).paint(latents)


def draw_samples(path: Path, images: list[np.ndarray], captions: list[str], columns: int | None = None) -> None:
    """Write a grid of images (H, W, 3) uint8, near-square if not of so many columns, with captions, as PNG."""
    from matplotlib.figure import Figure

    columns = columns or max(1, round(len(images) ** 0.5))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.15 * columns, 1.32 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for number, axes in enumerate(grid.flat):
        if number < len(images):
            _show(axes, images[number])
            axes.set_xlabel(shorten(captions[number]), fontsize=6.5, labelpad=2, color="#333333")
        else:
            axes.axis("off")
    write_figure(figure, path)


def draw_trajectory(path: Path, trajectory: Trajectory, schedule: Schedule) -> None:
    """Write the phases as PNG: the schedule on top, below it each sample's texture and, where there are, semantics."""
    from matplotlib.figure import Figure

    points, samples = trajectory.textures.shape[:2]
    colours = principal_colours(trajectory.semantics) if trajectory.semantics.shape[2] else None
    streams = 1 if colours is None else 2
    figure = Figure(figsize=(1.05 * points + 0.9, 1.9 + 1.08 * streams * samples), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[1.9, 1.08 * streams * samples])
    top, bottom = parts
    _draw_schedule(top.subplots(), schedule, trajectory.progress, colours is not None)
    grid = bottom.subplots(streams * samples, points, squeeze=False)
    for sample in range(samples):
        for point in range(points):
            _show(grid[streams * sample, point], trajectory.textures[point, sample])
            if colours is not None:
                _show(grid[streams * sample + 1, point], colours[point, sample])
        name = f"{shorten(trajectory.captions[sample])}\ntexture"
        grid[streams * sample, 0].set_ylabel(name, fontsize=7, color=TEXTURE)
        if colours is not None:
            grid[streams * sample + 1, 0].set_ylabel("semantics", fontsize=7, color=SEMANTIC)
    for axes, progress in zip(grid[0], trajectory.progress, strict=True):
        axes.set_title(f"T = {progress:.2f}", fontsize=8)
    write_figure(figure, path)


def shorten(caption: str, length: int = 18) -> str:
    """A class name that fits under a tile: the first of ImageNet's comma-separated synonyms, cut if need be."""
    text = printable(caption.split(",")[0].replace("_", " "))
    text = text if len(text) <= length else text[: length - 1] + "…"
    return text.replace("$", r"\$")  # between two of which matplotlib sees mathematics


def _draw_schedule(axes: Axes, schedule: Schedule, shown: list[float], semantics: bool) -> None:
    line = np.linspace(0, schedule.end, 400)
    times = schedule.times(torch.from_numpy(line))
    if semantics:
        axes.plot(line, times.semantic.numpy(), color=SEMANTIC, label="semantic time", linewidth=2)
    axes.plot(line, times.texture.numpy(), color=TEXTURE, label="texture time", linewidth=2)
    for progress in shown:
        axes.axvline(progress, color="#999999", linewidth=0.6, linestyle=":")
    for phase in schedule.phases:
        both = all(phase.moves) and semantics
        colour = BOTH if both else TEXTURE if phase.moves.texture else SEMANTIC
        name = {BOTH: "both streams", TEXTURE: "textures only", SEMANTIC: "semantics only"}[colour]
        axes.axvspan(phase.start, phase.end, color=colour, alpha=0.10, linewidth=0)
        axes.text((phase.start + phase.end) / 2, 1.06, name, ha="center", va="bottom", fontsize=8, color=colour)
    axes.set_xlim(0, schedule.end)
    axes.set_ylim(-0.02, 1.04)
    axes.set_xlabel("progress T", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(frameon=False, fontsize=7, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)


def _show(axes: Axes, image: np.ndarray) -> None:
    axes.imshow(image, interpolation="nearest", vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#cccccc")
        spine.set_linewidth(0.5)


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, the same bytes for the same figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})

"""A picture of what a schedule was learned from: the probe's errors at both streams' noise, and paths through them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfd_cli.diffusion.laws import LeadSchedule
from sfd_cli.diffusion.path_criterion import ErrorSurface, Preference
from sfd_cli.report.pictures import SEMANTIC, TEXTURE, write_figure

INK, CHOSEN, PLAIN = "#1d2733", "#c9504d", "#6b7280"


def draw_surface(path: Path, surface: ErrorSurface, law: dict[str, Any], found: Preference) -> None:
    """Write a PNG: the error of either stream at every pair of levels, relative to where only its own level counts.

    Red is more than the mean over the other stream's levels, blue is less. The chosen path is drawn over it beside the
    synchronous one, with what the criterion says above. Right of the dotted line semantics are not judged.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.6), layout="constrained")
    levels = surface.levels.double().numpy()
    own_axes = {"texture": 1, "semantic": 0}  # the axis of the other stream's levels
    for axes, (name, colour) in zip(figure.subplots(1, 2), (("texture", TEXTURE), ("semantic", SEMANTIC)), strict=True):
        error = getattr(surface.errors, name).double().mean(0).numpy()
        relative = 100 * (error / error.mean(axis=own_axes[name], keepdims=True) - 1)
        bound = max(float(np.abs(relative).max()), 1e-6)
        image = axes.pcolormesh(levels, levels, relative, cmap="RdBu_r", vmin=-bound, vmax=bound, shading="nearest")
        figure.colorbar(image, ax=axes, label="% above the mean over the other's levels")
        _draw_paths(axes, levels, law)
        if surface.semantic_end < levels[-1]:
            axes.axvline(surface.semantic_end, color=PLAIN, linewidth=1, linestyle=":")
        axes.set_title(f"error of {name}s" if name == "texture" else "error of semantics", color=colour)
        axes.set_xlabel("logit time of semantics")
        axes.set_ylabel("logit time of textures")
    figure.suptitle(_verdict(law, found), fontsize=10, color=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_figure(figure, path)


def surface_summary(
    law: dict[str, Any], found: Preference, images: int, surface: ErrorSurface
) -> list[tuple[str, str]]:
    """Rows of a table: what was chosen, by how much it is better, and what other paths there are.

    Args:
        law: as settings name it.
        found: what the criterion says.
        images: held out.
        surface: the probe's errors on them.
    """
    return [
        ("schedule", _name(law)),
        ("held out", f"{images:,} images, {len(surface.clusters.unique()):,} that are not alike"),
        ("J of the synchronous schedule", f"{found.synchronous:.4g} nats an image"),
        ("the best lead less that", _gap(found)),
        ("less the same beside strangers' semantics", f"{found.related_gap:.3g} ± {found.related_error:.2g}"),
        ("if errors lie on straight lines between levels", f"{found.interpolation:.2g} from these"),
        ("on images that chose it", f"{found.lead_gap:.3g}, and {found.lattice_gap:.3g} for a path of any shape"),
    ]


def _draw_paths(axes: Any, levels: np.ndarray, law: dict[str, Any]) -> None:
    axes.plot(levels, levels, "--", color=PLAIN, linewidth=1.5, label="synchronous")
    if "lead" in law:
        low, high = levels[0], levels[-1]
        # As far as both streams have left the picture: a lead is that much apart, and a slope at most 4 more.
        reach = abs(law["lead"]) / 2 + 2
        progress = torch.linspace(low - reach, high + reach, 400, dtype=torch.float64).sigmoid()
        times = LeadSchedule(law["lead"], law.get("lead_slope", 0.0)).times(progress)
        texture, semantic = (time.logit().clamp(low, high).numpy() for time in times)
        axes.plot(semantic, texture, color=CHOSEN, linewidth=2.5, label="chosen")
    axes.legend(loc="lower right", fontsize=8)


def _verdict(law: dict[str, Any], found: Preference) -> str:
    gap = f"{_gap(found)}, against synchronous"
    if "lead" not in law:
        return f"{_name(law)} (the best lead: {gap})"
    if "lead_slope" in law:
        return f"{_name(law)} by the kinetic criterion (by excess: {gap})"
    return f"{_name(law)}: {gap}"


def _name(law: dict[str, Any]) -> str:
    if "lead" not in law:
        return "no clear preference, so synchronous"
    return f"lead {law['lead']:g}" + (f", slope {law['lead_slope']:g}" if "lead_slope" in law else "")


def _gap(found: Preference) -> str:
    return f"{found.gap:.3g} ± {found.standard_error:.2g} nats an image, on images that did not choose it"

"""Accuracy of sampling: error against a tight solution over network calls, for every solver, by phases and one span.

The models are trained ones (`make demo` makes them; `--models` names another folder with `dit`, `guide` and
`texture_vae`). An offset other than the one they were trained with is about the solver's error only. A guided call
counts as one. The tight solution is dopri5 by phases in float64.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import harness
import torch
from torch import Tensor

from sfd_cli.config import Settings
from sfd_cli.diffusion.guidance import AutoGuidance, GuidanceScale, VelocityField
from sfd_cli.diffusion.latents import LatentSpace
from sfd_cli.diffusion.schedule import AsynchronousSchedule, Schedule
from sfd_cli.diffusion.solver import CallCounter, integrate
from sfd_cli.errors import UserError
from sfd_cli.pipeline.models import SamplingModels
from sfd_cli.pipeline.sampler import Sampler
from sfd_cli.pipeline.seeds import balanced_labels, initial_noise

OFFSETS = [0.0, 0.3, 1.0]
TIGHT = {"solver": "dopri5", "rtol": 1e-7, "atol": 1e-8}
BASELINE = {"solver": "dopri5", "grid": "one-span", "rtol": 1e-3}
RECOMMENDED = {"solver": "ab3", "grid": "phases", "steps": 24}
FIXED = {"euler": 1, "heun": 2, "ab2": 1, "ab3": 1}  # network calls of a step
BUDGETS, TOLERANCES = (12, 18, 24, 48), (1e-2, 1e-3, 1e-4)
SCALE = 1.5
COLOURS = {"euler": "tab:grey", "heun": "tab:orange", "ab2": "tab:blue", "ab3": "tab:green", "dopri5": "tab:red"}


@dataclass(frozen=True)
class Problem:
    """What is integrated: a velocity field from given noise."""

    velocity: VelocityField
    noise: Tensor
    labels: Tensor
    schedule: Schedule
    space: LatentSpace

    def solve(self, **options: Any) -> tuple[Tensor, int]:
        """The latents and how many network calls they took."""
        counter = CallCounter(self.velocity)
        return replace(self, velocity=counter).latents(**options), counter.calls

    @torch.inference_mode()
    def latents(self, **options: Any) -> Tensor:
        """The latents alone; the solver sees the velocity itself."""
        return integrate(self.velocity, self.noise, self.labels, self.schedule, self.space, **options)


def load(models: Path, device: torch.device) -> Sampler:
    """The trained models.

    Raises:
        SystemExit: there are none.
    """
    names = ("dit", "guide", "texture_vae")
    settings = Settings.model_validate(
        {"paths": {name: models / name for name in names}, "sample": {"guidance": "autoguidance"}}
    )
    try:
        return SamplingModels.open(settings).load(settings.sample, device)
    except UserError as error:
        raise SystemExit(f"{error}\nGive a folder of trained models with --models, or make one: `make demo`") from None


def problem(sampler: Sampler, guided: bool, delta_t: float, images: int, double: bool = False) -> Problem:
    """The flow of the trained models from the noise of the first `images`, in float32 or float64."""
    dit, guide = (deepcopy(model).double() if double else model for model in (sampler.dit, sampler.guide))
    space, device = sampler.space, sampler.device
    noise = initial_noise(0, range(images), space.shape).to(device, torch.float64 if double else torch.float32)
    labels = balanced_labels(range(images), range(len(sampler.conditions))).to(device)
    velocity = AutoGuidance(dit, guide, GuidanceScale(SCALE, SCALE), space) if guided else dit
    return Problem(velocity, noise, labels, AsynchronousSchedule(delta_t), space)


def candidates(delta_t: float, guided: bool) -> Iterator[dict[str, Any]]:
    """Options of `integrate`; without an offset there is no jump, and both grids are the same."""
    for grid in ("phases", "one-span") if delta_t else ("phases",):
        for rtol in (1e-3,) if guided and grid == "one-span" else TOLERANCES:
            yield {"solver": "dopri5", "grid": grid, "rtol": rtol}
    for grid in ("phases", "one-span") if delta_t and not guided else ("phases",):
        for solver, cost in FIXED.items():
            for budget in BUDGETS[2:] if grid == "one-span" else BUDGETS:
                yield {"solver": solver, "grid": grid, "steps": budget // cost}


def measure(sampler: Sampler, guided: bool, delta_t: float, images: int) -> list[dict[str, Any]]:
    """Calls and errors of every candidate: of the composite latent, of its textures, and in grey levels."""
    exact = problem(sampler, guided, delta_t, images, double=True)
    started = time.perf_counter()
    solution, calls = exact.solve(**TIGHT)
    print(f"delta_t {delta_t}, guided {guided}: {calls} calls, {time.perf_counter() - started:.0f} s for the tight one")
    here = problem(sampler, guided, delta_t, images)
    solution, rows = solution.float(), []
    pixels = sampler.decode(solution).float()
    for options in candidates(delta_t, guided):
        found, calls = here.solve(**options)
        error = found - solution
        grey = sampler.decode(found).float() - pixels
        errors = {
            "rmse": root_mean_square(error),
            "rmse_texture": root_mean_square(here.space.views(error).texture),
            "rmse_worst_image": float(error.square().mean(dim=(1, 2, 3)).sqrt().max()),
            "grey_levels": root_mean_square(grey),
        }
        rows.append({"delta_t": delta_t, "guided": guided, **options, "calls": calls, **errors})
    return rows


def root_mean_square(error: Tensor) -> float:
    """Over all elements."""
    return float(error.square().mean().sqrt())


def find(rows: list[dict[str, Any]], options: dict[str, Any]) -> dict[str, Any]:
    """The row of these options; without an offset either grid stands for both."""
    wanted = {key: value for key, value in options.items() if key != "grid"}
    matching = [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]
    return next((row for row in matching if row["grid"] == options["grid"]), matching[0])


def verdicts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The recommended setting against one-span dopri5 at rtol 1e-3; and the fewest calls that come closer than it."""
    found = []
    for guided, delta_t in sorted({(row["guided"], row["delta_t"]) for row in rows}):
        group = [row for row in rows if (row["guided"], row["delta_t"]) == (guided, delta_t)]
        base, ours = find(group, BASELINE), find(group, RECOMMENDED)
        closer = [row for row in group if row["rmse"] < base["rmse"] and row["grid"] == "phases"]
        fewest = min(closer, key=lambda row: (row["calls"], row["rmse"]), default=ours)
        found.append(
            {
                "guidance": f"auto {SCALE}" if guided else "none",
                "delta_t": delta_t,
                "dopri5 calls": base["calls"],
                "rmse": base["rmse"],
                f"{RECOMMENDED['solver']}/{RECOMMENDED['steps']} calls": ours["calls"],
                "its rmse": ours["rmse"],
                "its textures": ours["rmse_texture"],
                "grey levels": ours["grey_levels"],
                "calls, ratio": base["calls"] / ours["calls"],
                "error, ratio": base["rmse"] / ours["rmse"],
                "fewest": f"{fewest['calls']} ({fewest['solver']})",
            }
        )
    return found


def draw(rows: list[dict[str, Any]], offsets: list[float], path: Path) -> None:
    """Error over calls, a panel per offset, without and with guidance."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        2, len(offsets), figsize=(1 + 4 * len(offsets), 8), sharex=True, sharey=True, squeeze=False
    )
    for (line, guided), (column, delta_t) in ((a, b) for a in enumerate((False, True)) for b in enumerate(offsets)):
        axis = axes[line, column]
        group = [row for row in rows if row["delta_t"] == delta_t and row["guided"] == guided]
        for solver, colour in COLOURS.items():
            for grid, style in (("phases", "-o"), ("one-span", "--x")):
                curve = sorted(
                    (row["calls"], row["rmse"]) for row in group if row["solver"] == solver and row["grid"] == grid
                )
                if curve:
                    label = f"{solver}, {'by phases' if grid == 'phases' else 'one span'}"
                    axis.plot(*zip(*curve, strict=True), style, color=colour, markersize=4, linewidth=1.2, label=label)
        if group:
            for options, marker, name in ((BASELINE, "s", "one-span dopri5, 1e-3"), (RECOMMENDED, "*", "recommended")):
                row = find(group, options)
                axis.plot(row["calls"], row["rmse"], marker, markersize=13, mfc="none", mec="black", label=name, ls="")
        axis.set(xscale="log", yscale="log")
        axis.set_title(f"delta_t {delta_t:g}, {f'AutoGuidance {SCALE}' if guided else 'no guidance'}", fontsize=10)
        axis.set_xticks([12, 24, 48, 96, 192], labels=["12", "24", "48", "96", "192"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("network calls")
    for axis in axes[:, 0]:
        axis.set_ylabel("RMSE of the composite latent")
    entries = {
        label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(entries.values(), entries.keys(), loc="lower center", ncols=6, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    print(path)


def parser(description: str | None, offsets: list[float]) -> argparse.ArgumentParser:
    """The options of every benchmark of sampling."""
    arguments = harness.arguments(description)
    arguments.add_argument("--models", type=Path, default=Path("models"), help="folder of trained models [models]")
    arguments.add_argument("--images", type=int, default=8, help="images integrated together [8]")
    shown = " ".join(f"{offset:g}" for offset in offsets)
    arguments.add_argument("--offsets", type=float, nargs="+", default=offsets, help=f"delta_t to sample at [{shown}]")
    return arguments


def main() -> None:
    """Measure, print, draw, save."""
    options = parser(__doc__, OFFSETS).parse_args()
    sampler = load(options.models, torch.device(options.device))
    rows = [
        row
        for guided in (False, True)
        for delta_t in options.offsets
        for row in measure(sampler, guided, delta_t, options.images)
    ]
    print()
    keys = ("delta_t", "solver", "grid", "setting", "calls", "rmse", "rmse_texture")
    trained = (sampler.trained_law or {}).get("delta_t")
    at_trained = [row for row in rows if row["delta_t"] == trained and not row["guided"]]
    harness.table([{key: _named(row)[key] for key in keys} for row in at_trained])
    print("\nAgainst one-span dopri5 at rtol 1e-3; the fewest calls by phases that come closer than it:\n")
    harness.table(verdicts(rows))
    harness.save("sampling", options, {"tight": TIGHT, "recommended": RECOMMENDED, "rows": rows})
    draw(rows, options.offsets, Path(options.out) / "sampling.png")


def _named(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"setting": f"{row['steps']} steps" if "steps" in row else f"rtol {row['rtol']:g}"}


if __name__ == "__main__":
    main()

"""What starting from a trained transformer is worth: one of six categories of the demo goes on with the other three.

Every run takes the demo's real stages: `prepare-data`, `extract-features` and `encode-latents` on six categories and
on three, with the project's texture VAE and Semantic VAE; `train` on the six, which stands for a published checkpoint;
then `train` on the three from it (its statistics inherited, or those of the three), and from nothing, with the same
settings; `curve` for the Fréchet distance (DINOv2 class token) along each, without guidance. The network is small.

Everything lies in `--work` and goes on where it was stopped. Several commands may share the folder, with other
`--seeds`, once one without seeds has made what they share:

    python benchmarks/finetune.py --project demo --work /tmp/finetune --seeds
    python benchmarks/finetune.py --project demo --work /tmp/finetune --seeds 0 1 2
    python benchmarks/finetune.py --page          # the results in docs/finetune.md, from the JSON
"""

from __future__ import annotations

import argparse
import math
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import harness
import yaml

from sfd_cli.config import Settings, validate_settings
from sfd_cli.data.images import ImageManifest
from sfd_cli.evaluation.curve import FOLDER, MEAN, STEP, TABLE, read_table
from sfd_cli.files import read_json
from sfd_cli.presets import preset_text
from sfd_cli.stages import curve, encode_latents, extract_features, prepare_data, train
from sfd_cli.studies.layers import merged

PAGE = Path(__file__).parents[1] / "docs" / "finetune.md"
BEGIN, END = "<!-- results of benchmarks/finetune.py -->", "<!-- end of results -->"
NEW = ("food-drink", "objects", "travel-places")
"""The three categories that training goes on with: 615 of the demo's 1,898 images."""
SOURCE = {"steps": 2000, "decay": 0.3}
RUNS: dict[str, dict[str, Any]] = {
    "inherited statistics": {"statistics": "init", "steps": 900, "keep_every": 150},
    "own statistics": {"statistics": "own", "steps": 900, "keep_every": 150},
    "from nothing": {"steps": 1200, "keep_every": 300},
}
NETWORK: dict[str, Any] = {
    "width": 96,
    "depth": 4,
    "heads": 4,
    "batch_size": 32,
    "learning_rate": 2.0e-3,
    "warmup_steps": 50,
    "decay": 0.0,
    "ema_decay": 0.99,
    "ema_warmup": True,
    "compile": False,
    "checkpoint_every": 500,
    "log_every": 100,
    "sample_every": 0,
}
RANDOM = {"weights": "random"}
QUICK: dict[str, Any] = {"width": 16, "depth": 2, "batch_size": 8, "steps": 4, "keep_every": 2}


def settings_of(options: argparse.Namespace, images: str, run: str, dit: dict[str, Any]) -> Settings:
    """Settings of the demo for one training: `images` is "six" or "three", `run` the folder of model and metrics."""
    work, project = options.work, options.project
    shared = {key: str(work / images / key) for key in ("images", "features", "latents")}
    models = {key: str(project / "models" / key) for key in ("texture_vae", "semvae")}
    own = {key: str(work / "runs" / run / key) for key in ("dit", "metrics", "probe", "schedule", "guide", "samples")}
    changes: dict[str, Any] = {
        "runtime": {"device": options.device},
        "paths": shared | models | own,
        "images": {"source": "folder", "folder": str(work / images / "pictures")},
        "dit": NETWORK | dit | (QUICK if options.quick else {}),
        "sample": {"guidance": "none", "num_images": options.images, "steps": 24, "batch_size": 100, "seed": 0},
        "fid": {"scores": ["fd"], "baselines": False},
    }
    if options.quick:
        changes = merged(changes, {"encoder": RANDOM, "fid": {"encoder": RANDOM | {"image_size": 56}}})
    return validate_settings(merged(yaml.safe_load(preset_text("demo")), changes), run)


def encode(options: argparse.Namespace, images: str, names: list[str]) -> None:
    """Latents of these categories, by the project's own texture VAE and Semantic VAE."""
    pictures = options.work / images / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    for name in names:
        if not (pictures / name).exists():
            (pictures / name).symlink_to((options.project / "data" / "images" / name).resolve())
    settings = settings_of(options, images, images, {})
    for stage in (prepare_data, extract_features, encode_latents):
        stage.run(settings)


def distances(options: argparse.Namespace, run: str, seed: int) -> dict[int, float]:
    """Fréchet distance by steps of a training on the three categories; what is done already is not done again."""
    start = {} if run == "from nothing" else {"init": str(options.work / "runs" / "source" / "dit")}
    settings = settings_of(options, "three", f"{run.replace(' ', '-')}-{seed}", RUNS[run] | start | {"seed": seed})
    train.run(settings)
    curve.run(settings)
    columns = read_table(settings.paths.metrics / FOLDER / TABLE)
    key = next(column for column in columns if column.startswith("fd_") and column.endswith(MEAN))
    return {int(step): value for step, value in zip(columns[STEP], columns[key], strict=True)}


def steps_to(target: float, found: dict[int, float]) -> float | None:
    """Steps after which the distance is `target`, on a straight line between milestones; None where it never is.

    What is there at the first milestone already took that many steps at most, which is what is given then.
    """
    if next(iter(found.values())) <= target:
        return float(next(iter(found)))
    for (before, high), (after, low) in pairwise(found.items()):
        if low <= target:
            return before + (after - before) * (high - target) / (high - low)
    return None


def compared(found: dict[str, dict[int, dict[int, float]]]) -> dict[str, Any]:
    """Last distances, steps to what a start from nothing ends with, and what other statistics cost, by seed."""
    seeds = sorted(set.intersection(*(set(runs) for runs in found.values())))
    targets = {seed: list(found["from nothing"][seed].values())[-1] for seed in seeds}
    rows: dict[str, Any] = {}
    for run, by_seed in found.items():
        last = [list(by_seed[seed].values())[-1] for seed in seeds]
        steps = [steps_to(targets[seed], by_seed[seed]) for seed in seeds]
        rows[run] = {"last": last, "steps to the last of from nothing": steps}
    pairs = {
        step: _spread(
            [found["own statistics"][seed][step] - found["inherited statistics"][seed][step] for seed in seeds]
        )
        for step in found["own statistics"][seeds[0]]
    }
    return {"seeds": seeds, "runs": rows, "own minus inherited, by steps": pairs}


def _spread(values: list[float]) -> dict[str, float]:
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return {"mean": fmean(values), "standard error": error}


def plot(found: dict[str, dict[int, dict[int, float]]], path: Path) -> None:
    """Distance over steps, a line for every seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for colour, (run, by_seed) in enumerate(found.items()):
        for place, curve_of in enumerate(by_seed.values()):
            label = run if place == 0 else None
            ax.plot(list(curve_of), list(curve_of.values()), "o-", markersize=3, color=f"C{colour}", label=label)
    ax.set(xlabel="steps on the three categories", ylabel="Fréchet distance")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def page(result: dict[str, Any]) -> str:
    """The results as docs/finetune.md has them."""
    seeds, images = len(result["seeds"]), result["settings"]["images"]
    lines = [
        f"{seeds} seeds on {result['machine']['processor']}, {images} samples scored each time:",
        "",
        "| start | steps | Fréchet distance after them, mean (all) | steps to what a start from nothing ends with |",
        "|---|---:|---:|---:|",
    ]
    for run, row in result["runs"].items():
        first, *_, steps = (int(step) for step in next(iter(result["found"][run].values())))
        each = ", ".join(f"{value:.0f}" for value in row["last"])
        told = {None: "never", first: f"at most {first}"}
        reached = [told.get(step, f"{step or 0:,.0f}") for step in row["steps to the last of from nothing"]]
        lines.append(f"| {run} | {steps:,} | {fmean(row['last']):.0f} ({each}) | {', '.join(reached)} |")
    gaps = [
        f"{part['mean']:+.1f} ± {part['standard error']:.1f} after {int(step):,} steps"
        for step, part in result["own minus inherited, by steps"].items()
    ]
    found = f"Statistics of the three categories instead of the source's move the distance by {', '.join(gaps)}"
    return "\n".join([*lines, "", f"{found} (standard errors over the seeds, which share everything else)."])


def write_page(out: Path) -> None:
    """Put the results in OUT into docs/finetune.md, between its two marks."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    result = read_json(out / "finetune-cpu.json")
    PAGE.write_text(f"{before}{BEGIN}\n{page(result)}\n{END}{after}")


def main() -> None:
    """Train, score, print, plot and save."""
    parser = harness.arguments(__doc__, timed=False)
    parser.add_argument("--project", type=Path, default=Path(), help="a finished demo: its images and compressors")
    parser.add_argument("--work", type=Path, default=Path("finetune"), help="folder of all that is made")
    parser.add_argument("--page", action="store_true", help="write docs/finetune.md from the results, run nothing")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="[0 1 2]; none: what they share only")
    parser.add_argument("--images", type=int, default=200, help="samples that are scored [%(default)s]")
    parser.add_argument("--quick", action="store_true", help="tiny networks, figures of no worth")
    options = parser.parse_args()
    if options.page:
        return write_page(options.out)

    manifest = ImageManifest.load(options.project / "data" / "images")
    encode(options, "six", [name for name in manifest.classes if name not in NEW])
    encode(options, "three", list(NEW))
    train.run(settings_of(options, "six", "source", SOURCE))
    found = {run: {seed: distances(options, run, seed) for seed in options.seeds} for run in RUNS}
    if not options.seeds:
        return None
    result = compared(found)
    harness.table(
        [
            {
                "start": run,
                **{str(seed): row["last"][place] for place, seed in enumerate(result["seeds"])},
                "steps to the same": str([step and round(step) for step in row["steps to the last of from nothing"]]),
            }
            for run, row in result["runs"].items()
        ]
    )
    plot(found, options.out / "finetune.png")
    options.project, options.work = options.project.name, options.work.name
    harness.save("finetune", options, {"found": found, **result})
    return None


if __name__ == "__main__":
    main()

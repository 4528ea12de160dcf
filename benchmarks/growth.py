"""How cost grows with images, tokens, batch and width: four sizes each, and the exponent beside that of the arithmetic.

Images: seconds of `sfd encode-latents` on sets of 64 px. Tokens, batch and width: seconds of a training step of a small
LightningDiT, fetching left out. The prediction is the exponent of the counted operations over the same sizes.
Writes a plot beside the JSON. `--quick` is for trying it out.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from PIL import Image
from training_step import build, make_problem

from sfd_cli.config import Settings
from sfd_cli.data.images import ImageManifest
from sfd_cli.files import write_json
from sfd_cli.formats.model_folder import save_model
from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig
from sfd_cli.networks.precision import choose_precision
from sfd_cli.networks.semantic_vae import SemanticVAE, SemanticVAEConfig
from sfd_cli.networks.texture_vae import TextureVAE, TextureVAEConfig
from sfd_cli.stages import encode_latents
from sfd_cli.training.throughput import training_flops

SIDE, TEXTURE, SEMANTIC, FEATURES = 64, 24, 8, 384


# Images: sfd encode-latents


def encode_candidates(root: Path, sizes: list[int], device: str) -> dict[str, Callable[[], object]]:
    """`sfd encode-latents` of the demo's networks (random weights) over sets of these sizes, each time afresh."""
    _save_models(root)
    _write_images(root / "pictures", max(sizes))
    return {f"images {size}": _encode(root, size, device) for size in sizes}


def _encode(root: Path, size: int, device: str) -> Callable[[], object]:
    images = root / f"images{size}"
    manifest = ImageManifest.of(root / "pictures", {f"a/{index:05d}.png": str(index) for index in range(size)})
    images.mkdir()
    manifest.save(images, root="../pictures")
    write_json(images / "settings.json", {"fingerprint": str(size), "complete": True, "settings": {}, "inputs": {}})
    runs = count()

    def run() -> object:
        latents = root / f"latents{size}-{next(runs)}"
        paths = {"images": images, "latents": latents, "features": root / "none", "metrics": root / "metrics"}
        settings = Settings.model_validate(
            {
                "runtime": {"device": device},
                "paths": paths | {name: root / name for name in ("texture_vae", "semvae")},
                "images": {"size": SIDE},
                "encoder": {"name": "dinov2_vits14", "weights": "random", "image_size": 56},
                "texture_vae": {"channels": 6, "block_channels": [16, 16, 32, 64], "norm_groups": 8}
                | {"space_to_depth": 2},
            }
        )
        with contextlib.redirect_stderr(io.StringIO()):
            return encode_latents.run(settings)

    return run


def _save_models(root: Path) -> None:
    torch.manual_seed(0)
    texture = TextureVAEConfig(6, (16, 16, 32, 64), norm_groups=8, space_to_depth=2)
    semantic = SemanticVAEConfig(FEATURES, SEMANTIC, width=192, depth=2, heads=4)
    save_model(root / "texture_vae", "TextureVAE", texture, {"model": TextureVAE(texture).state_dict()}, {})
    save_model(root / "semvae", "SemanticVAE", semantic, {"model": SemanticVAE(semantic).state_dict()}, {})


def _write_images(folder: Path, number: int) -> None:
    rng = np.random.default_rng(0)
    (folder / "a").mkdir(parents=True)
    for index in range(number):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / "a" / f"{index:05d}.png")


# Tokens, batch and width: a training step


def network(grid: int, width: int, depth: int) -> LightningDiTConfig:
    """A LightningDiT like the demo's."""
    projector: dict[str, int] = {"repa_depth": 2, "repa_width": 256, "feature_width": FEATURES}
    return LightningDiTConfig(grid, TEXTURE + SEMANTIC, 9, SEMANTIC, width, depth, heads=width // 48, **projector)


def step_of(config: LightningDiTConfig, batch: int, device: torch.device) -> Callable[[], None]:
    """A training step as `sfd train` takes it, not compiled, on random latents."""
    problem = make_problem(config, batch, choose_precision("auto", device), device)
    return build("eager", problem).step


def flops_of(config: LightningDiTConfig, batch: int) -> int:
    """Operations of a training step, counted."""

    def forward(model: torch.nn.Module) -> None:
        x = torch.empty(batch, config.in_channels, config.grid, config.grid)
        model(x, torch.empty(batch), torch.empty(batch), torch.empty(batch, dtype=torch.int64), True)

    return training_flops(forward, lambda: LightningDiT(config))


def training_cases(options: argparse.Namespace) -> dict[str, dict[int, tuple[LightningDiTConfig, int]]]:
    """What is varied: architecture and batch by size."""
    width, depth = options.width, options.depth
    return {
        "tokens": {grid**2: (network(grid, width, depth), 2) for grid in options.grids},
        "batch": {batch: (network(options.grids[1], width, depth), batch) for batch in options.batches},
        "width": {wide: (network(options.grids[1], wide, 4), 4) for wide in options.widths},
    }


# Fits and the plot


def exponent(sizes: list[int], costs: list[float]) -> float:
    """Slope of a straight line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def growth(timings: dict[int, harness.Timing], work: dict[int, float]) -> dict[str, Any]:
    """Seconds at every size, the exponent of their medians and that of the counted work."""
    sizes = list(timings)
    seconds = [timing.median for timing in timings.values()]
    # seconds = fixed part + slope * work, with equal relative errors.
    slope, fixed = np.polyfit(list(work.values()), seconds, 1, w=1 / np.array(seconds))
    return {
        "sizes": sizes,
        "seconds": [timing.seconds for timing in timings.values()],
        "median": seconds,
        "spread": [timing.spread for timing in timings.values()],
        "work": list(work.values()),
        "exponent": exponent(sizes, seconds),
        "between the last two": math.log(seconds[-1] / seconds[-2]) / math.log(sizes[-1] / sizes[-2]),
        "predicted": exponent(sizes, list(work.values())),
        "fixed": float(fixed),
        "per_work": float(slope),
    }


def plot(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Cost over size in four log-log panels: medians, quartiles, the fitted power, and the counted work."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FixedLocator, NullLocator

    labels = {
        "images": "images of 64 px",
        "tokens": "tokens per image",
        "batch": "images per step",
        "width": "width of the tokens",
    }
    figure, axes = plt.subplots(1, 4, figsize=(15, 4.2), layout="constrained")
    for ax, (name, result) in zip(axes, found.items(), strict=True):
        sizes, median = np.array(result["sizes"]), np.array(result["median"])
        low, high = np.array(result["spread"]).T
        work = np.array(result["work"])
        middle = np.exp(np.log(median).mean() - result["exponent"] * np.log(sizes).mean())
        ax.plot(sizes, work * (median[-1] / work[-1]), "--", color="0.55", label=f"counted: {result['predicted']:.2f}")
        ax.plot(sizes, middle * sizes ** result["exponent"], color="C0", label=f"fitted: {result['exponent']:.2f}")
        ax.plot(sizes, result["fixed"] + result["per_work"] * work, ":", color="C1", label="fixed + counted")
        ax.errorbar(sizes, median, (median - low, high - median), fmt="o", color="C0", capsize=3, label="measured")
        ax.set(xscale="log", yscale="log", xlabel=labels[name])
        ax.xaxis.set_major_locator(FixedLocator(sizes))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xticklabels([f"{size:,}" for size in sizes])
        ax.set_ylabel("seconds of encode-latents" if name == "images" else "seconds of a training step")
        ax.grid(alpha=0.3)
        ax.legend(title="exponent", frameon=False, loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Measure, print, plot and save."""
    parser = harness.arguments(__doc__)
    parser.set_defaults(repetitions=5)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, figures of no worth")
    options = parser.parse_args()
    options.images, options.encodings = [40, 80, 160, 320], 3
    options.grids, options.batches, options.widths = [4, 8, 16, 32], [4, 8, 16, 32], [96, 192, 384, 768]
    options.width, options.depth = 192, 6
    if options.quick:
        options.images, options.encodings, options.repetitions = [2, 4, 6, 8], 1, 1
        options.grids, options.batches, options.widths = [2, 3, 4, 5], [1, 2, 3, 4], [48, 96, 144, 192]
        options.width, options.depth = 48, 2
    device = torch.device(options.device)

    load = os.getloadavg()[0]
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        candidates = encode_candidates(Path(temporary), options.images, options.device)
        next(iter(candidates.values()))()  # what the first run of all loads and warms
        timed = harness.interleaved(candidates, options.encodings, 0, device)
    by_size = dict(zip(options.images, timed.values(), strict=True))
    found["images"] = growth(by_size, {size: float(size) for size in options.images})
    for name, cases in training_cases(options).items():
        candidates = {f"{name} {size}": step_of(*case, device) for size, case in cases.items()}
        timed = harness.interleaved(candidates, options.repetitions, 1, device)
        work = {size: float(flops_of(*case)) for size, case in cases.items()}
        found[name] = growth(dict(zip(cases, timed.values(), strict=True)), work)

    rows = []
    for name, result in found.items():
        shown = {
            f"{place}": f"{size}: {seconds:.3g} s"
            for place, size, seconds in zip(
                ("1st", "2nd", "3rd", "4th"), result["sizes"], result["median"], strict=True
            )
        }
        rows.append(
            {"grows with": name}
            | shown
            | {key: result[key] for key in ("exponent", "between the last two", "predicted", "fixed")}
        )
    harness.table(rows)
    plot(found, Path(options.out) / "growth.png")
    harness.save("growth", options, {"load before": load, "growth": found})


if __name__ == "__main__":
    main()

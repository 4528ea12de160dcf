"""Does the Semantic VAE lose anything when it trains in bf16 autocast, as `semvae.precision: auto` has it on a GPU?

Trained with the same seeds in fp32 and in bf16, on the patch tokens of a project; losses at the end, and what is lost
of held-out images, which is computed in fp32. How far two seeds are apart in fp32 says what is much. No times: what
bf16 costs on a CPU says nothing about a GPU; it is slow where the processor has no bf16 products.

    python benchmarks/semantic_vae.py --features data/features --batch-size 16      # the demo's
    python benchmarks/semantic_vae.py --features data/features --steps 400 --device cuda
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import arguments, save, table

from sfd_cli.config import Settings, load_settings
from sfd_cli.data.store import Store
from sfd_cli.data.validation_split import validation_split
from sfd_cli.evaluation.held_out import semantic_scores
from sfd_cli.training.compressors import Fitting, train_vae
from sfd_cli.training.live_log import latest_values

SCORES = ("loss", "held-out mse", "held-out cosine", "held-out kl")


def trained(settings: Settings, store: Store, device: torch.device, folder: Path) -> dict[str, float]:
    """Last logged loss, and scores on held-out images."""
    section = settings.semvae
    rows, held_out = validation_split(len(store), section.holdout)
    model = train_vae(Fitting(settings, store, rows, device, folder / "checkpoints"))
    scores = semantic_scores(model, store, held_out, section.batch_size, device)
    values = [latest_values(folder / "metrics" / "semvae")["loss"], scores["mse"], scores["cosine"], scores["kl"]]
    return dict(zip(SCORES, values, strict=True))


def measured(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both precisions, seed by seed."""
    store, given = Store(options.features), load_settings(options.params)
    runs: dict[str, list[dict[str, float]]] = {"fp32": [], "bf16": []}
    for seed in range(options.seeds):
        for precision, found in runs.items():
            own = folder / f"{precision}-{seed}"
            chosen = {
                "steps": options.steps,
                "seed": seed,
                "precision": precision,
                "log_every": max(options.steps // 5, 1),
            }
            chosen["batch_size"] = options.batch_size
            settings = given.model_copy(
                update={
                    "semvae": given.semvae.model_copy(update=chosen),
                    "paths": given.paths.model_copy(update={"metrics": own / "metrics"}),
                }
            )
            found.append(trained(settings, store, torch.device(options.device), own))
    means = {name: {key: float(np.mean([run[key] for run in found])) for key in SCORES} for name, found in runs.items()}
    apart = {key: float(np.ptp([run[key] for run in runs["fp32"]])) for key in SCORES}
    moved = {key: means["bf16"][key] - means["fp32"][key] for key in SCORES}
    both = {key: {name: mean[key] for name, mean in means.items()} for key in SCORES}
    table([{"score": key, **both[key], "bf16 - fp32": moved[key], "two seeds": apart[key]} for key in SCORES])
    return {"runs": runs, "means": means, "bf16 minus fp32": moved, "spread of seeds in fp32": apart}


def main() -> None:
    """Train and save."""
    parser = arguments(__doc__, timed=False)
    parser.add_argument("--features", type=Path, default=Path("data/features"), help="a feature store [%(default)s]")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="its settings [%(default)s]")
    parser.add_argument("--steps", type=int, default=100, help="of each training [%(default)s]")
    parser.add_argument("--batch-size", type=int, default=64, help="images of a step [%(default)s]")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each precision [%(default)s]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measured(options, Path(folder))
    save("semantic_vae", options, result)


if __name__ == "__main__":
    main()

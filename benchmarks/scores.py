"""`sfd fid` beside torch-fidelity's own command, for the scores that both have: seconds, memory, and differences.

First from images to scores, with one Inception of random weights on both sides, for its published ones may not be at
hand and take as long. Then from features to scores, for more images than that network would see in two minutes. Memory
is the peak of anonymous memory of a process of its own, above what it held before; the processes that torch-fidelity's
loader starts are left out of it. Linux only. `--quick` is for trying it out.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import harness
import numpy as np
import torch
from memory import median, turns
from PIL import Image
from torch import Tensor, nn
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from sfd_cli.config import Settings
from sfd_cli.data.images import image_files
from sfd_cli.evaluation.comparison import compare
from sfd_cli.evaluation.extractor import LOGITS, POOLED
from sfd_cli.evaluation.features import FeatureSet
from sfd_cli.evaluation.frechet import frechet_distance
from sfd_cli.evaluation.images import ImageFiles
from sfd_cli.evaluation.inception import inception_extractor
from sfd_cli.evaluation.inception_score import SPLIT, inception_score
from sfd_cli.evaluation.kid import LARGEST_SUBSET, kernel_distance
from sfd_cli.evaluation.precision_recall import precision_recall
from sfd_cli.evaluation.reference import Reference
from sfd_cli.evaluation.scores import summarise

BATCH = 16
NAMES = {
    "fid": "frechet_inception_distance",
    "inception_score": "inception_score_mean",
    "kid": "kernel_inception_distance_mean",
    "precision": "precision",
    "recall": "recall",
}
"""What torch-fidelity calls each score."""
CLOSE = {"fid": 1e-3, "inception_score": 1e-4, "kid": 1e-2, "precision": 0.01, "recall": 0.01}
"""Largest difference at which both agree, in parts of the score: torch-fidelity has float32 where ours is float64, and
of the images that precision and recall count one may lie on the edge of a ball."""


# Images to scores


def ours(samples: Path, reference: Path, weights: Path, device: str) -> dict[str, float]:
    """As `sfd fid` does it, by the functions that it calls."""
    chosen = {"scores": ["fd", "inception_score", "kid", "precision_recall"], "baselines": False, "batch_size": BATCH}
    settings = Settings.model_validate({"fid": chosen, "runtime": {"device": device}})
    extractor = inception_extractor(weights, torch.device(device)).only({POOLED, LOGITS})
    images, real = (ImageFiles(image_files(folder)) for folder in (samples, reference))
    compared = compare(settings, images, {extractor.name: Reference("images", real)}, [extractor])
    found = summarise(compared, [extractor], {}, settings.fid)
    return {name: found[name] for name in NAMES}


def theirs(samples: Path, reference: Path, weights: Path, device: str) -> dict[str, float]:
    """As `fidelity --isc --fid --kid --prc` does it, with our seed and one split of the Inception score."""
    found = calculate_metrics(
        input1=str(samples),
        input2=str(reference),
        cuda=device != "cpu",
        batch_size=BATCH,
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(weights),
        isc_splits=1,
        kid_subset_size=min(LARGEST_SUBSET, *(len(image_files(folder)) for folder in (samples, reference))),
        rng_seed=0,
        cache=False,
        verbose=False,
    )
    return {name: float(found[key]) for name, key in NAMES.items()}


def write_weights(path: Path) -> None:
    """Inception's weights, random ones, in the file that both programs take."""

    def fill(network: nn.Module, state: object) -> None:
        for one in network.modules():
            if isinstance(one, nn.Conv2d):
                nn.init.kaiming_normal_(one.weight)
            elif isinstance(one, nn.Linear):
                nn.init.normal_(one.weight, 0, 0.1)  # or every image would have all classes alike
            elif isinstance(one, nn.BatchNorm2d):
                nn.init.normal_(one.running_mean, 0, 0.1)
                nn.init.uniform_(one.running_var, 0.5, 2)

    torch.manual_seed(0)
    torch.save({}, path)
    with patch.object(FeatureExtractorInceptionV3, "load_state_dict", fill):
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    torch.save(network.state_dict(), path)


def write_images(folder: Path, count: int, side: int, blocks: int, seed: int) -> None:
    """PNGs of blurred blocks."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (blocks, blocks, 3), dtype=np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{index:06d}.png", compress_level=1)


def measure_images(options: argparse.Namespace) -> dict[str, Any]:
    """Both from the same images and weights."""
    with tempfile.TemporaryDirectory() as temporary:
        samples, reference, weights = (Path(temporary) / name for name in ("samples", "reference", "inception.pth"))
        write_images(samples, options.images, options.side, 6, seed=0)
        write_images(reference, options.images, options.side, 8, seed=1)
        write_weights(weights)
        given = (samples, reference, weights, options.device)
        return compared_runs({"theirs": partial(theirs, *given), "ours": partial(ours, *given)}, options.repetitions)


# Features to scores


def features(count: int, which: int) -> tuple[Tensor, Tensor]:
    """Pooled features (count, 2048) with a falling spectrum, and logits (count, 1008)."""
    generator = torch.Generator().manual_seed(which)
    scale, shift = (1 + 0.1 * which) * torch.arange(1, 2049) ** -0.5, 0.02 * which
    pooled = torch.randn(count, 2048, generator=generator) * scale + shift
    return pooled, 2 * torch.randn(count, 1008, generator=generator)


def ours_of_features(count: int, device: str) -> dict[str, float]:
    """What `sfd fid` does once it has the features, without the errors and the extrapolation that it adds."""
    (samples, logits), (reference, _) = (features(count, which) for which in (0, 1))
    sets = [FeatureSet(2048, count, seed=0) for _ in range(2)]
    for found, rows in zip(sets, (samples, reference), strict=True):
        for batch in rows.split(BATCH):
            found.update(batch)
    precision, recall = precision_recall(sets[0].rows.to(device), sets[1].rows.to(device), 3)
    return {
        "fid": frechet_distance(sets[0].gaussian(), sets[1].gaussian()),
        "inception_score": float(np.mean(inception_score(logits))),
        "kid": kernel_distance(sets[0].rows, sets[1].rows)["mean"],
        "precision": precision,
        "recall": recall,
    }


def theirs_of_features(count: int, device: str) -> dict[str, float]:
    """What torch-fidelity does once it has the features, which it has on the CPU whatever the device."""
    (samples, logits), (reference, _) = (features(count, which) for which in (0, 1))
    statistics = [fid_features_to_statistics(rows) for rows in (samples, reference)]
    found = fid_statistics_to_metric(*statistics, verbose=False)
    found |= isc_features_to_metric(logits, splits=-(-count // SPLIT), shuffle=False)
    subset = {"kid_subset_size": min(LARGEST_SUBSET, count), "rng_seed": 0}
    found |= kid_features_to_metric(samples, reference, **subset, verbose=False)
    found |= prc_features_to_metric(samples, reference, verbose=False)
    return {name: float(found[key]) for name, key in NAMES.items()}


def measure_features(options: argparse.Namespace) -> dict[str, Any]:
    """Both from the same features."""
    works = {"theirs": theirs_of_features, "ours": ours_of_features}
    candidates = {name: partial(work, options.features, options.device) for name, work in works.items()}
    return compared_runs(candidates, options.repetitions)


def compared_runs(candidates: dict[str, Any], repetitions: int) -> dict[str, Any]:
    """Time both in turn, and require that they agree."""
    runs = turns(candidates, repetitions)
    there, here = (runs[name][0]["result"] for name in ("theirs", "ours"))
    rows = [
        {
            "score": name,
            "torch-fidelity": there[name],
            "sfd": here[name],
            "difference": abs(here[name] - there[name]) / max(abs(there[name]), 1e-12),
        }
        for name in NAMES
    ]
    for row in rows:
        assert row["difference"] <= CLOSE[row["score"]], row
    timings = {name: harness.Timing(name, [run["seconds"] for run in found]) for name, found in runs.items()}
    return {
        "scores": rows,
        "seconds": {name: timing.seconds for name, timing in timings.items()},
        "times faster": harness.ratios(timings["theirs"], timings["ours"]),
        "mb": {name: median(found, "mb") for name, found in runs.items()},
    }


def show(title: str, found: dict[str, Any]) -> None:
    """Print one comparison."""
    print(f"{title}\n")
    harness.table(found["scores"])
    for name, label in (("theirs", "torch-fidelity"), ("ours", "sfd")):
        print(f"{label}: {np.median(found['seconds'][name]):.3g} s, peak {found['mb'][name]:.0f} MB")
    ratio = found["times faster"]
    print(f"{ratio['median']:.2f} times as fast ({ratio['low']:.2f} to {ratio['high']:.2f})\n")


def main() -> None:
    """Measure, print and save."""
    parser = harness.arguments(__doc__)
    parser.set_defaults(repetitions=2)
    parser.add_argument("--images", type=int, default=48, help="samples, and as many reference images [48]")
    parser.add_argument("--side", type=int, default=256, help="their side, pixels [256]")
    parser.add_argument("--features", type=int, default=2500, help="samples of the second part, likewise [2500]")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, figures of no worth")
    options = parser.parse_args()
    if options.quick:
        options.images, options.side, options.features, options.repetitions = 6, 32, 60, 1
    load = os.getloadavg()[0]
    images = measure_images(options)
    show(f"{options.images} images of {options.side} px against as many", images)
    found = measure_features(options)
    show(f"Features of {options.features} images against as many", found)
    harness.save("scores", options, {"load before": load, "images": images, "features": found})


if __name__ == "__main__":
    main()

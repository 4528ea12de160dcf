"""Scoring: memory while images stream to features and features to metrics, and the Fréchet distance against SciPy.

Every memory figure is the peak of anonymous memory (RssAnon, what cannot be dropped and read again) of a process of its
own, above what it held before the work began. Linux only. `--quick` is for trying it out.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import harness
import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from memory import median, turns
from PIL import Image
from torch import Tensor
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, calc_cdist_part, prc_features_to_metric

from sfd_cli.data.images import image_files
from sfd_cli.evaluation import kid, precision_recall
from sfd_cli.evaluation.extractor import POOLED, Extractor
from sfd_cli.evaluation.features import FeatureSet, extract
from sfd_cli.evaluation.frechet import frechet_distance
from sfd_cli.evaluation.gaussian import FeatureMoments, Gaussian, gaussian_of_subset
from sfd_cli.evaluation.images import ImageFiles, ImageSource
from sfd_cli.evaluation.npz import open_npz

BATCH = 64
SUBSETS = 10  # of KID's 100, which take their memory one after the other


# Images to features


def cheap_extractor(width: int, device: torch.device) -> Extractor:
    """Random projections of the image shrunk to 8 x 8: features of any width that cost next to nothing."""
    weights = torch.randn(192, width, generator=torch.Generator().manual_seed(0)).to(device)

    def compute(images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(images.float() / 255, 8).flatten(1) @ weights

    return Extractor.of("cheap", width, device, compute)


def streamed(path: Path, width: int, device: str, compare: bool) -> tuple[float, ...]:
    """As `sfd fid` does it: batches from the file, moments and rows of their features; then what metrics need."""
    source: ImageSource | None = ImageFiles(image_files(path)) if path.is_dir() else open_npz(path)[0]
    assert source is not None
    extractor = cheap_extractor(width, torch.device(device))
    found = extract(source, path.name, [extractor], BATCH, seed=0)["cheap"][POOLED]
    summary = _summary(found.gaussian(), found.rows.numpy())
    if not compare:
        return summary
    kid.SUBSETS = 1
    distance = kid.kernel_distance(found.rows, found.rows)["mean"]
    return (*summary, distance, _nearest_by_tiles(found.rows))


def loaded_whole(path: Path, width: int, device: str, compare: bool) -> tuple[float, ...]:
    """The plain way: all images in one array, all features in one array, moments and metrics from that."""
    if path.is_dir():
        images = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in sorted(path.iterdir())])
    else:
        images = np.load(path)["arr_0"]
    extractor = cheap_extractor(width, torch.device(device))
    starts = range(0, len(images), BATCH)
    pixels = (torch.from_numpy(images[start : start + BATCH]).permute(0, 3, 1, 2) for start in starts)
    rows = torch.cat([extractor(batch) for batch in pixels])
    wide = rows.double().numpy()
    summary = _summary(Gaussian(wide.mean(0), np.cov(wide, rowvar=False), len(wide)), rows.numpy())
    if not compare:
        return summary
    samples, reference = rows.double(), rows.double()
    settings = {"kid_subsets": 1, "kid_subset_size": min(1000, len(rows)), "rng_seed": 0, "verbose": False}
    distance = kid_features_to_metric(samples, reference, **settings)[KEY_METRIC_KID_MEAN]
    return (*summary, distance, _nearest(rows, 4096))


def _nearest(rows: Tensor, block: int) -> float:
    """One block of the distances that precision and recall look at, as torch-fidelity takes it."""
    return float(calc_cdist_part(rows[:block], rows, block).kthvalue(4).values[:64].sum())


def _nearest_by_tiles(rows: Tensor) -> float:
    """The same as `sfd fid` takes it."""
    tile = precision_recall.TILE
    nearest = torch.full((len(rows[:tile]), 4), torch.inf)
    for others in rows.split(tile):
        nearest = precision_recall._smallest(nearest, torch.cdist(rows[:tile], others))
    return float(nearest[:64, -1].sum())


def _summary(gaussian: Gaussian, rows: np.ndarray) -> tuple[float, ...]:
    """Two numbers that differ where the moments or the rows do."""
    width = gaussian.width
    weights = np.random.default_rng(0).standard_normal((3, width))
    rows_seen = sum(float((part * weights[2]).sum()) for part in np.array_split(rows, 100))
    return float(weights[0] @ gaussian.mean + weights[1] @ gaussian.covariance @ weights[1]), rows_seen


def write_images(folder: Path, options: argparse.Namespace) -> list[tuple[str, Path, int, int]]:
    """(kind, path, images, bytes of pixels) of the sets that are measured."""
    rng = np.random.default_rng(0)
    sets = []
    for count in (options.images // 4, options.images):
        path = folder / f"{count}.npz"
        np.savez(path, arr_0=rng.integers(0, 256, (count, options.side, options.side, 3), dtype=np.uint8))
        sets.append(("npz", path, count, count * options.side**2 * 3))
    png = folder / "png"
    png.mkdir()
    for index in range(options.files):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((128, 128)).save(png / f"{index:06d}.png", compress_level=1)
    return [*sets, ("PNG", png, options.files, options.files * 128 * 128 * 3)]


def measure_images(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Streamed against loaded whole, for sets of several sizes."""
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        sets = write_images(Path(temporary), options)
        # The last one goes on to what KID (one subset of 100) and precision (one block of distances) take.
        cases = [(*found, 64, False) for found in sets] + [(*sets[1], options.wide, True)]
        for kind, path, count, size, width, compare in cases:
            candidates = {"whole": loaded_whole, "streamed": streamed}
            works = {name: partial(work, path, width, options.device, compare) for name, work in candidates.items()}
            runs = turns(works, 1 if compare else options.turns)
            results = [run["result"] for found in runs.values() for run in found]
            np.testing.assert_allclose(results, [results[0]] * len(results), rtol=1e-5)
            rows.append(
                {
                    "images": f"{count:,} {kind}" + (" to metrics" if compare else ""),
                    "width": width,
                    "pixels, MB": size / 1e6,
                    "features, MB": count * width * 4 / 1e6,
                    "whole, MB": median(runs["whole"], "mb"),
                    "streamed, MB": median(runs["streamed"], "mb"),
                    "whole, s": median(runs["whole"], "seconds"),
                    "streamed, s": median(runs["streamed"], "seconds"),
                    "runs": runs,
                }
            )
    return rows


# Features to metrics


def feature_batches(count: int, width: int, which: int) -> Iterator[Tensor]:
    """Features with a falling spectrum, in batches; those of the two sets are unlike each other."""
    generator = torch.Generator().manual_seed(which)
    scale, shift = (1 + 0.1 * which) * torch.arange(1, width + 1) ** -0.5, 0.05 * which
    for start in range(0, count, BATCH):
        yield torch.randn(min(BATCH, count - start), width, generator=generator) * scale + shift


def metrics(count: int, width: int) -> dict[str, float]:
    """As `sfd fid` does it: the rows of a `FeatureSet`, and KID, precision, recall and a matched distance from them."""
    kid.SUBSETS = SUBSETS
    sets = [FeatureSet(width, count, seed=0) for _ in range(2)]
    for which, found in enumerate(sets):
        for batch in feature_batches(count, width, which):
            found.update(batch)
    samples, reference = (found.rows for found in sets)
    precision, recall = precision_recall.precision_recall(samples, reference, 3)
    halves = [gaussian_of_subset(rows, count // 2, seed=0) for rows in (samples, reference)]
    distance = kid.kernel_distance(samples, reference)["mean"]
    return {"kid": distance, "precision": precision, "recall": recall, "matched": frechet_distance(*halves)}


def metrics_of_copies(count: int, width: int) -> dict[str, float]:
    """The plain way: features gathered in a list and joined, then all of them in float64, in torch-fidelity's loops."""
    lists = [list(feature_batches(count, width, which)) for which in (0, 1)]
    samples, reference = (torch.cat(batches) for batches in lists)
    found = prc_features_to_metric(
        samples, reference, prc_neighborhood=3, prc_batch_size=4096, save_cpu_ram=True, verbose=False
    )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))[: count // 2]
    halves = [rows[order].double().numpy() for rows in (samples, reference)]
    gaussians = [Gaussian(half.mean(0), np.cov(half, rowvar=False), len(half)) for half in halves]
    kid = kid_features_to_metric(
        samples.double(),
        reference.double(),
        kid_subsets=SUBSETS,
        kid_subset_size=min(1000, count),
        rng_seed=0,
        verbose=False,
    )
    return {
        "kid": kid[KEY_METRIC_KID_MEAN],
        "precision": found[KEY_METRIC_PRECISION],
        "recall": found[KEY_METRIC_RECALL],
        "matched": frechet_distance(*gaussians),
    }


def measure_metrics(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What KID, precision, recall and the matched distance take on top of the features."""
    rows = []
    for count in options.features:
        candidates = {"copies": metrics_of_copies, "in place": metrics}
        runs = turns({name: partial(work, count, 384) for name, work in candidates.items()}, options.turns)
        results = [run["result"] for found in runs.values() for run in found]
        differences = {
            name: max(abs(other[name] / value - 1) for other in results) for name, value in results[0].items()
        }
        assert max(differences.values()) < 1e-6, differences
        rows.append(
            {
                "features": f"2 x {count:,} x 384",
                "they take, MB": 2 * count * 384 * 4 / 1e6,
                "copies, MB": median(runs["copies"], "mb"),
                "in place, MB": median(runs["in place"], "mb"),
                "copies, s": median(runs["copies"], "seconds"),
                "in place, s": median(runs["in place"], "seconds"),
                "largest difference": max(differences.values()),
                "runs": runs,
            }
        )
    return rows


# The Fréchet distance


def by_sqrtm(a: Gaussian, b: Gaussian) -> float:
    """The Fréchet distance as it is usually computed, by a general matrix square root of the product."""
    shift = a.mean - b.mean
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    return float(shift @ shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.trace(root).real)


def gaussians(count: int, width: int) -> tuple[Gaussian, Gaussian]:
    """Fitted to `count` features each."""
    fitted = []
    for which in (0, 1):
        moments = FeatureMoments(width)
        for batch in feature_batches(count, width, which):
            moments.update(batch)
        fitted.append(Gaussian.of(moments.moments()))
    return fitted[0], fitted[1]


def measure_distances(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Both ways at several widths, in turn."""
    rows = []
    for width, repetitions in options.widths:
        a, b = gaussians(3 * width, width)
        candidates = {"sqrtm": partial(by_sqrtm, a, b), "eigh": partial(frechet_distance, a, b)}
        values: dict[str, float] = {}

        def keep(name: str, work: Callable[[], float], values: dict[str, float] = values) -> None:
            values[name] = work()

        timed = {name: partial(keep, name, work) for name, work in candidates.items()}
        timings = harness.interleaved(timed, repetitions, warmup=int(width < 1024))
        difference = abs(values["eigh"] / values["sqrtm"] - 1)
        assert difference < 1e-6, (width, difference)
        ratio = harness.ratios(timings["sqrtm"], timings["eigh"])
        rows.append(
            {
                "width": width,
                "sqrtm, s": timings["sqrtm"].median,
                "eigh, s": timings["eigh"].median,
                "times faster": ratio["median"],
                "low": ratio["low"],
                "high": ratio["high"],
                "relative difference": difference,
                "seconds": {name: timing.seconds for name, timing in timings.items()},
            }
        )
    return rows


def measure_singular(count: int, width: int) -> list[dict[str, Any]]:
    """Fewer images than features: relative errors against the nuclear norm, which needs no square root at all."""
    x, y = (torch.cat(list(feature_batches(count, width, which))).double() for which in (0, 1))
    a, b = gaussians(count, width)
    shift = (x.mean(0) - y.mean(0)).square().sum()
    x, y = ((rows - rows.mean(0)) / (count - 1) ** 0.5 for rows in (x, y))
    exact = float(shift + x.square().sum() + y.square().sum() - 2 * torch.linalg.matrix_norm(x @ y.T, "nuc"))
    errors = {"sqrtm": by_sqrtm(a, b) / exact - 1, "eigh": frechet_distance(a, b) / exact - 1}
    return [{"images": count, "width": width} | {f"error of {name}": error for name, error in errors.items()}]


def main() -> None:
    """Measure, print and save."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--images", type=int, default=50_000, help="images in the larger npz [50000]")
    parser.add_argument("--side", type=int, default=32, help="their side, pixels [32]")
    parser.add_argument("--files", type=int, default=2000, help="PNGs of 128 px [2000]")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, figures of no worth")
    options = parser.parse_args()
    options.turns, options.features, options.wide = 2, [6000], 2048
    options.widths = [(384, options.repetitions), (768, max(options.repetitions - 2, 1)), (2048, 2)]
    if options.quick:
        options.images, options.side, options.files = 200, 8, 20
        options.turns, options.features, options.wide, options.widths = 1, [100], 32, [(32, 2)]

    load = os.getloadavg()[0]
    images = measure_images(options)
    print("Images to features: peak of anonymous memory\n")
    harness.table([_without(row, "runs") for row in images])
    found = measure_metrics(options)
    print("\nFeatures to KID, precision, recall and a matched distance: the same, features included\n")
    harness.table([_without(row, "runs") for row in found])
    distances = measure_distances(options)
    print("\nFréchet distance\n")
    harness.table([_without(row, "seconds") for row in distances])
    singular = measure_singular(*(20, 32) if options.quick else (200, 384))
    print("\nThe same with singular covariances\n")
    harness.table(singular)
    result = {"load before": load, "images": images, "metrics": found, "distances": distances, "singular": singular}
    harness.save("scoring", options, result)


def _without(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != key}


if __name__ == "__main__":
    main()

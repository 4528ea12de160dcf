"""`sfd memorisation`: whether samples are copies of training images."""

from __future__ import annotations

from typing import Any

import numpy as np

from sfd_cli.config import Settings
from sfd_cli.data.images import ImageManifest
from sfd_cli.distributed.processes import Processes
from sfd_cli.errors import UserError
from sfd_cli.evaluation.extractor import Extractor
from sfd_cli.evaluation.extractors import EXTRACTORS
from sfd_cli.evaluation.images import ImageFiles, ImageSource
from sfd_cli.evaluation.memorisation import PERCENTILE, memorisation, two_views
from sfd_cli.evaluation.reconstructions import ReconstructedImages, open_codec
from sfd_cli.evaluation.scored_images import ScoredImages, choose, images_at
from sfd_cli.files import write_json
from sfd_cli.machine import machine
from sfd_cli.report.pictures import draw_samples

MOST_COMPARED = 50_000
"""Training images that samples are compared with; of more, as many random ones."""
PAIRS = 16
AFTER_CODEC = "through the texture codec, as samples are"


def run(settings: Settings) -> dict[str, Any]:
    """Write `metrics/memorisation.json` and a picture of the closest pairs, `metrics/closest_pairs.png`.

    Images are compared by the class token of `fid.encoder`, samples as they are and mirrored. In the picture a sample
    is on the left, its training image on the right, and below their distance in parts of the threshold. Under torchrun
    the processes take batches of images in turn, and the first one compares them.

    Returns:
        The share of samples that are nearer to a training image than 99 % of real images are to another one, and
        whether that is memorisation: None where it cannot be told, for many images are there twice. Of the first
        process alone.

    Raises:
        UserError: samples or training images are missing, of different sizes, or too few.
    """
    processes = Processes.join()
    samples, manifest, rows, training, extractor = processes.agree(lambda: _open(settings, processes))
    held_out, after = _held_out(settings, samples, training, processes)
    compared: dict[str, ImageSource] = {"samples": samples.images, "training images": training}
    compared |= {"reconstructions": held_out} if held_out is not None else {}
    views = {
        what: two_views(images, what, extractor, settings.fid.batch_size, processes).to(extractor.device)
        for what, images in compared.items()
    }
    if not processes.is_main:
        return {}
    real = views["training images"]
    found = memorisation(views["samples"], real, views.get("reconstructions", real))
    closest = found.closest(PAIRS)
    partners = [int(found.samples.images[sample]) for sample in closest]
    captions = [f"{found.samples.distances[sample] / found.threshold:.2f}" for sample in closest]
    picture = settings.paths.metrics / "closest_pairs.png"
    pairs_of_images = zip(images_at(samples.images, closest), images_at(training, partners), strict=True)
    draw_samples(picture, [np.concatenate(pair, axis=1) for pair in pairs_of_images], captions)
    summary: dict[str, Any] = {
        "samples": samples.images.count,
        "training_images": training.count,
        "share_near": found.share,
        "share_of_real_images": PERCENTILE / 100,
        "standard_error": found.error,
        "memorised": found.is_found,
        "threshold": found.threshold,
        "median_distance": float(np.median(found.samples.distances)),
        "median_distance_of_real_images": float(np.median(found.held_out.distances)),
        "real_images_are": after,
    }
    pairs = [
        {
            "sample": sample,
            "training_image": str(manifest.path(rows[partner])),
            "distance": float(found.samples.distances[sample]),
        }
        for sample, partner in zip(closest, partners, strict=True)
    ]
    used = extractor.identity | {"samples": samples.description, "images": manifest.fingerprint, "machine": machine()}
    file = settings.paths.metrics / "memorisation.json"
    write_json(file, summary | {"closest": pairs, "used": used})
    return summary | {"file": str(file), "picture": str(picture)}


def _held_out(
    settings: Settings, samples: ScoredImages, training: ImageSource, processes: Processes
) -> tuple[ImageSource | None, str]:
    """The training images through the texture codec, and that; None where there are only these as they are, and why.

    Samples have been through its decoder: without that, what it loses would set them apart from images that have not.
    """
    if samples.made is None or not samples.made.settings:
        return None, "as they are: these samples are not of `sfd sample`"
    codec, why = open_codec(settings, training, processes)
    return (None, f"as they are: {why}") if codec is None else (ReconstructedImages(training, codec), AFTER_CODEC)


def _open(
    settings: Settings, processes: Processes
) -> tuple[ScoredImages, ImageManifest, list[int], ImageFiles, Extractor]:
    """The samples; the training images' manifest, and which of them are compared; these; and what sees them."""
    samples = ScoredImages.open(settings.paths.samples, settings)
    manifest = ImageManifest.load(settings.paths.images)
    rows = choose(len(manifest), min(MOST_COMPARED, len(manifest)), settings.fid.seed)
    training = ImageFiles([manifest.path(row) for row in rows], samples.side, settings.runtime.threads)
    if min(samples.images.count, training.count) < 2:
        raise UserError("samples", "one image is not enough to compare", "give more")
    return (
        samples,
        manifest,
        rows,
        training,
        EXTRACTORS["encoder"].open(settings, processes.device(settings.runtime.device)),
    )

"""`sfd fid`: score the samples, and put floor and ceiling beside the score."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from torch import Tensor
from tqdm import tqdm

from sfd_cli.artifacts.sampled import Sampled
from sfd_cli.config import Settings
from sfd_cli.data.images import ImageManifest
from sfd_cli.device import choose_device
from sfd_cli.errors import StageFailure, UserError
from sfd_cli.evaluation.features import Extractor, FeatureSet, class_token_extractor, extract, inception_extractor
from sfd_cli.evaluation.frechet import Gaussian
from sfd_cli.evaluation.images import ImageFiles, ImageSource, image_files, open_npz
from sfd_cli.evaluation.inception import inception_weights
from sfd_cli.evaluation.scores import METRICS, Reference, Scores, baselines, name_of, score, unavailable
from sfd_cli.files import write_json
from sfd_cli.pipeline.untrained import untrained_images
from sfd_cli.weights.fetch import digest
from sfd_cli.weights.models import locate
from sfd_cli.weights.visual_encoders import encoder_fingerprint

INCEPTION, DINOV2 = "inception", "dinov2"
Features = dict[str, FeatureSet]


@dataclass(frozen=True)
class Source:
    """Where the reference comes from: images, or published statistics of features, or both."""

    description: str
    images: ImageSource | None
    statistics: Gaussian | None = None

    def statistics_for(self, extractor: Extractor) -> Gaussian | None:
        """The statistics, if they are of this extractor's features; the width tells."""
        fits = self.statistics is not None and self.statistics.width == extractor.width
        return self.statistics if fits else None


@dataclass(frozen=True)
class Compared:
    """Everything that has been turned into features, by extractor."""

    samples: Features
    reference: Features
    untrained: Features
    untrained_reason: str


def run(settings: Settings) -> dict[str, Any]:
    """Compute all scores and write `metrics/fid.json`.

    The numbers of images stand beside the scores under `counts`; what cannot be computed is null, with the
    reason under `<name>_reason`.

    Returns:
        The contents of `fid.json`.

    Raises:
        UserError: samples or reference are missing, damaged, or fewer than asked for; or nothing can be scored.
    """
    started = time.monotonic()
    samples = Sampled.open(settings.paths.samples)
    chosen = samples.choose(settings.fid.num_images, settings.fid.seed)
    source = _reference(settings, samples.side)
    extractors, reasons, used = _extractors(settings)
    sources = {extractor.name: _source_for(extractor, source, settings, samples.side) for extractor in extractors}
    compared = _compute(settings, samples, chosen, sources, extractors)

    scores: Scores = {}
    counts: dict[str, Any] = {"samples": len(chosen)}
    for extractor in extractors:
        reference = Reference(compared.reference.get(extractor.name), sources[extractor.name].statistics_for(extractor))
        scores |= _scores(extractor.name, reference, compared, settings)
        counts |= _counts(extractor.name, reference, compared, settings.fid.baselines)
    for name, reason in reasons.items():
        scores |= _renamed(name, unavailable(METRICS[:1], reason))
        scores |= _renamed(name, unavailable(METRICS[1:], f"see {name_of(name, 'fd')}_reason"))
    used |= {f"{name_of(name, 'fd')}_reference": found.description for name, found in sources.items()}
    used |= {"samples": samples.description, "settings": settings.fid.model_dump(mode="json")}
    used["torch_fidelity"] = version("torch-fidelity")
    result = scores | {"counts": counts, "notes": _notes(extractors, compared), "used": used}
    write_json(settings.paths.metrics / "fid.json", result)
    seconds = round(time.monotonic() - started, 2)
    write_json(settings.paths.metrics / "timings" / "fid.json", [{"seconds": seconds, "resumed": False}])
    return result


def _extractors(settings: Settings) -> tuple[list[Extractor], dict[str, str], dict[str, Any]]:
    """The extractors there are, why others are not there, and what identifies each."""
    device = choose_device(settings.runtime.device)
    found: list[Extractor] = []
    reasons: dict[str, str] = {}
    used: dict[str, Any] = {}
    encoder = settings.fid.encoder
    try:
        found.append(class_token_extractor(encoder, device))
        used["encoder"] = encoder.model_dump() | {"token": "class", "fingerprint": encoder_fingerprint(encoder)}
    except UserError as error:
        reasons[DINOV2] = str(error)
    if settings.fid.inception == "none":
        reasons[INCEPTION] = "switched off (fid.inception: none)"
    else:
        try:
            weights = inception_weights()
            found.append(inception_extractor(weights, device))
            used["inception"] = {"file": weights.name, "sha256": digest(weights)}
        except (UserError, StageFailure) as error:
            reasons[INCEPTION] = str(error)
    if not found:
        raise UserError("nothing can be scored; " + "; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
    return found, reasons, used


def _reference(settings: Settings, side: int) -> Source:
    """The reference that `fid.reference` names; images in a folder are centre-cropped to the samples' side."""
    if settings.fid.reference is None:
        return _training_images(settings, side)
    path = locate(settings.fid.reference, "metric")
    if path.is_dir():
        return Source(str(path), ImageFiles(image_files(path), side, settings.runtime.workers))
    if path.suffix == ".npz":
        opened = open_npz(path)
        return Source(str(path), opened.images, opened.statistics)
    raise UserError(f"fid.reference: {path} is neither a folder of images nor an npz, nor a name in `sfd weights list`")


def _source_for(extractor: Extractor, source: Source, settings: Settings, side: int) -> Source:
    """The reference, or the training images for an extractor of which it says nothing.

    Published statistics are of Inception's features; the DINOv2 distance then has the training images to go by.
    """
    if source.images is not None or source.statistics_for(extractor) is not None:
        return source
    try:
        return _training_images(settings, side)
    except UserError:
        return Source("none", None)


def _training_images(settings: Settings, side: int) -> Source:
    manifest = ImageManifest.load(settings.paths.images)
    files = [manifest.path(index) for index in range(len(manifest))]
    description = f"training images {settings.paths.images} {manifest.fingerprint[:16]}"
    return Source(description, ImageFiles(files, side, settings.runtime.workers))


def _compute(
    settings: Settings, samples: Sampled, chosen: list[int], sources: dict[str, Source], extractors: list[Extractor]
) -> Compared:
    """Turn samples, reference images and an untrained model's images into features, each image read once."""
    size, workers = settings.fid.batch_size, settings.runtime.workers

    def features(batches: Iterable[Tensor], count: int, what: str, wanted: list[Extractor]) -> Features:
        bar = tqdm(batches, total=-(-count // size), desc=f"features of {what}", unit="batch", disable=None)
        return extract(bar, count, wanted, settings.fid.seed)

    files = ImageFiles([samples.files[index] for index in chosen], None, workers)
    scored = features(files.batches(size), files.count, "samples", extractors)
    real: Features = {}
    for source in {id(found): found for found in sources.values()}.values():
        wanted = [extractor for extractor in extractors if sources[extractor.name] is source]
        if source.images is not None:
            real |= features(source.images.batches(size), source.images.count, "the reference", wanted)
    if not settings.fid.baselines:
        return Compared(scored, real, {}, "")
    try:
        untrained = untrained_images(settings, len(chosen), choose_device(settings.runtime.device))
    except UserError as error:
        return Compared(scored, real, {}, str(error))
    return Compared(scored, real, features(untrained, len(chosen), "an untrained model", extractors), "")


def _scores(extractor: str, reference: Reference, compared: Compared, settings: Settings) -> Scores:
    """One extractor's scores and baselines under their names in `fid.json`."""
    samples, seed = compared.samples[extractor], settings.fid.seed
    scores = score(samples, reference, settings.fid.neighbours, seed)
    if settings.fid.baselines:
        untrained = compared.untrained.get(extractor)
        scores |= baselines(samples, untrained, compared.untrained_reason, reference, seed)
    return _renamed(extractor, scores)


def _counts(extractor: str, reference: Reference, compared: Compared, with_halves: bool) -> dict[str, Any]:
    """How many images stand behind one extractor's scores; None where a statistics file does not say."""
    fd, against = name_of(extractor, "fd"), reference.gaussian
    counts: dict[str, Any] = {f"{fd}_reference": against.count if against else 0}
    if reference.images is not None:
        rows = [len(found.rows) for found in (compared.samples[extractor], reference.images)]
        counts |= {name_of(extractor, metric): rows for metric in METRICS[1:]}
        if with_halves:
            counts[f"{fd}_halves"] = [reference.images.half(which).count for which in (0, 1)]
    if extractor in compared.untrained:
        counts["untrained"] = compared.untrained[extractor].count
    return counts


def _notes(extractors: list[Extractor], compared: Compared) -> list[str]:
    """What a reader must know to judge the numbers."""
    notes = []
    for extractor in extractors:
        count = compared.samples[extractor.name].count
        if count <= extractor.width:
            notes.append(
                f"{count} samples are few for {extractor.width} {extractor.name} features: their Fréchet distance is"
                " far above that of a large sample, and compares only with others from as many images."
            )
    return notes


def _renamed(extractor: str, scores: Scores) -> Scores:
    return {name_of(extractor, key): value for key, value in scores.items()}

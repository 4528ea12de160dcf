"""`sfd fid`: score the samples, and put floor and ceiling beside the score."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Self

import torch

from sfd_cli.artifacts.sample_folder import Samples
from sfd_cli.config import Settings
from sfd_cli.distributed.processes import Processes
from sfd_cli.errors import UserError
from sfd_cli.evaluation.autoencoders import score_autoencoders
from sfd_cli.evaluation.by_class import class_distances, class_lines, class_notes
from sfd_cli.evaluation.comparison import compare
from sfd_cli.evaluation.extractor import POOLED
from sfd_cli.evaluation.images import ImageSource
from sfd_cli.evaluation.metric import Compared
from sfd_cli.evaluation.scored_images import ScoredImages
from sfd_cli.evaluation.scores import SEE, compared_scores, name_of, summarise
from sfd_cli.evaluation.scoring import Scoring
from sfd_cli.evaluation.semantics import NAME as SEMANTICS
from sfd_cli.evaluation.semantics import score_semantics
from sfd_cli.evaluation.side_by_side import score_beside
from sfd_cli.files import write_json
from sfd_cli.machine import machine
from sfd_cli.pipeline.protocol import differences, protocol_record
from sfd_cli.trackers.sending import tracked
from sfd_cli.trackers.tracker import require_trackers


@dataclass(frozen=True)
class _Opened:
    """What is compared, checked and not yet looked at.

    Attributes:
        samples: the images to score.
        others: those beside them, by the name they are given.
        scoring: what scores them.
    """

    samples: ScoredImages
    others: dict[str, ScoredImages]
    scoring: Scoring

    @classmethod
    def of(cls, settings: Settings, device: torch.device) -> Self:
        require_trackers(settings)
        samples = ScoredImages.open(settings.paths.samples, settings)
        others = {str(path): ScoredImages.open(path, settings) for path in settings.fid.beside}
        for name, other in others.items():
            if other.side != samples.side:
                problem = f"has images of {other.side} px, and {samples.description} of {samples.side}"
                raise UserError(name, problem, "score it by itself")
        return cls(samples, others, Scoring.open(settings, samples.side, device))

    @property
    def seen(self) -> dict[str, Any]:
        """What every process must have before it, by what it is."""
        found: dict[str, Any] = {f"{one.name} features": one.identity for one in self.scoring.extractors}
        images: dict[str, ImageSource | None] = {"samples": self.samples.images}
        images |= {name: other.images for name, other in self.others.items()}
        images |= {f"the reference of {name}": one.images for name, one in self.scoring.references.items()}
        return found | {name: None if one is None else one.count for name, one in images.items()}


def run(settings: Settings) -> dict[str, Any]:
    """Compute all scores and write `metrics/fid.json`, and what one compares runs by to `metrics/scores.json`.

    The numbers of images stand beside the scores under `counts`; what cannot be computed is null, with the reason
    under `<name>_reason`. Under `autoencoders` is what texture codec and Semantic VAE lose, under `used` what was
    compared and by what settings, and under `machine` on what. Where the samples' protocol is not the one that they
    name, `notes` say so. Under torchrun the processes take batches of images in turn, those that go through the
    autoencoders too, and the first one computes the scores of them all, and those of semantics.

    Returns:
        The scores with their counts, of features that cannot be had the reason once, those of each class in a line, and
        the path of the file that has it all; of the first process alone.

    Raises:
        UserError: samples or reference are missing, damaged, or fewer than `fid.num_images`; or there is no extractor.
    """
    started = time.monotonic()
    processes = Processes.join()
    opened = processes.agree(lambda: _Opened.of(settings, processes.device(settings.runtime.device)))
    processes.require_same("sfd fid", opened.seen)
    samples, extractors = opened.samples, opened.scoring.extractors
    compared = compare(settings, samples.images, opened.scoring.references, extractors, processes)
    result: dict[str, Any] = {}
    if processes.is_main:
        result = summarise(compared, extractors, opened.scoring.missing, settings.fid)
        result |= _by_class(settings, opened, compared, result["notes"])
    if opened.others:
        images = {name: other.images for name, other in opened.others.items()}
        result["beside"] = score_beside(result, compared, images, extractors, settings.fid, processes)
    autoencoders = score_autoencoders(settings, samples.images.count, processes) if settings.fid.baselines else {}
    if not processes.is_main:
        return {}
    semantics = score_semantics(settings, samples.made)
    result |= semantics.scores | {"counts": result["counts"] | semantics.counts}
    result["features"] |= {SEMANTICS: "decoded semantics"} if semantics.scores else {}
    if settings.fid.baselines:
        result["autoencoders"] = autoencoders
    protocol = _protocol(samples.made)
    named = protocol.get("name") or settings.sample.protocol
    if protocol and named:
        reference = str(settings.fid.reference or "the training images")
        result["notes"] += differences(named, protocol, samples.images.count, reference)

    metrics = settings.paths.metrics
    used = semantics.used | _used(settings, opened, protocol)
    write_json(metrics / "fid.json", result | {"used": used, "machine": machine()})
    write_json(metrics / "scores.json", compared_scores(result, [*(found.name for found in extractors), SEMANTICS]))
    seconds = round(time.monotonic() - started, 2)
    write_json(metrics / "timings" / "fid.json", [{"seconds": seconds, "resumed": False}])
    with tracked(settings, "dit", processes.is_main) as feed:
        feed.scores = result
    lines = class_lines(result)
    return _told(result) | ({"by_class": lines} if lines else {}) | {"file": str(metrics / "fid.json")}


def _told(result: dict[str, Any]) -> dict[str, Any]:
    """What is printed: of features that there are not, the reason once."""
    seen = {key for key, value in result.items() if isinstance(value, str) and value.startswith(SEE)}
    left_out = seen | {key.removesuffix("_reason") for key in seen} | {"features"}
    return {key: value for key, value in result.items() if key not in left_out}


def _by_class(
    settings: Settings, opened: _Opened, compared: dict[str, dict[str, Compared]], notes: list[str]
) -> dict[str, Any]:
    """The distances of each class, where they are asked for; what to keep in mind of them is added to `notes`."""
    if not settings.fid.by_class:
        return {}
    references = {name: found.labels for name, found in opened.scoring.references.items()}
    scores = class_distances(compared, opened.samples.labels, references, settings.fid)
    notes += class_notes(scores, {found.name: found.widths.get(POOLED, 0) for found in opened.scoring.extractors})
    return scores


def _used(settings: Settings, opened: _Opened, protocol: dict[str, Any]) -> dict[str, Any]:
    """What was compared, and by what settings."""
    used: dict[str, Any] = {}
    for extractor in opened.scoring.extractors:
        used |= extractor.identity
    used |= {f"{name_of(name, 'fd')}_reference": found.description for name, found in opened.scoring.references.items()}
    used |= {"samples": opened.samples.description, "protocol": protocol}
    return used | {"settings": settings.fid.model_dump(mode="json"), "torch_fidelity": version("torch-fidelity")}


def _protocol(samples: Samples | None) -> dict[str, Any]:
    """By what the samples were made, and on what; empty for images that `sfd sample` did not write."""
    if samples is None or not samples.settings:
        return {}
    record = samples.protocol or protocol_record(samples.settings)
    return (
        {"name": samples.settings.get("protocol")}
        | record
        | {key: samples.settings.get(key) for key in ("device", "torch")}
    )

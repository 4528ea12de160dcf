"""`sfd fid`: score the samples, and put floor and ceiling beside the score."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

from sfd_cli.artifacts.sample_folder import Samples
from sfd_cli.config import Settings
from sfd_cli.errors import UserError
from sfd_cli.evaluation.comparison import compare
from sfd_cli.evaluation.extractors import open_extractors
from sfd_cli.evaluation.reference import open_references
from sfd_cli.evaluation.scored_images import ScoredImages
from sfd_cli.evaluation.scores import chosen, headline_scores, kinds_compared, name_of, summarise
from sfd_cli.evaluation.side_by_side import score_beside
from sfd_cli.files import write_json
from sfd_cli.machine import machine
from sfd_cli.pipeline.protocol import differences, protocol_record


def run(settings: Settings) -> dict[str, Any]:
    """Compute all scores and write `metrics/fid.json`, and those of the samples alone to `metrics/scores.json`.

    The numbers of images stand beside the scores under `counts`; what cannot be computed is null, with the
    reason under `<name>_reason`; under `used` is what was compared, by what settings, and under `machine` on what.
    Where the samples' protocol is not the one that they name, `notes` say so.

    Returns:
        The scores with their counts, and the path of the file that has it all.

    Raises:
        UserError: samples or reference are missing, damaged, or fewer than `fid.num_images`; or there is no extractor.
    """
    started = time.monotonic()
    samples = ScoredImages.open(settings.paths.samples, settings)
    others = {str(path): ScoredImages.open(path, settings) for path in settings.fid.beside}
    for name, other in others.items():
        if other.side != samples.side:
            problem = f"has images of {other.side} px, and {samples.description} of {samples.side}"
            raise UserError(name, problem, "score it by itself")
    extractors, missing = open_extractors(settings)
    kinds = {metric.features for metric in chosen(settings.fid)}
    extractors = [wanted for found in extractors if (wanted := found.only(kinds)).widths]
    if not extractors:
        why = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
        problem = f"{', '.join(settings.fid.scores)} cannot be computed ({why})"
        raise UserError("fid.scores", problem, "add scores of the features that there are, such as fd")
    compared_kinds = kinds_compared(settings.fid)
    widths = {found.name: found.only(compared_kinds).widths.values() for found in extractors}
    references = open_references(settings, widths, samples.side)

    compared = compare(settings, samples.images, references, extractors)
    result = summarise(compared, extractors, missing, settings.fid)
    if others:
        images = {name: other.images for name, other in others.items()}
        result["beside"] = score_beside(result, compared, images, extractors, settings.fid)
    protocol = _protocol(samples.made)
    named = protocol.get("name") or settings.sample.protocol
    if protocol and named:
        reference = str(settings.fid.reference or "the training images")
        result["notes"] += differences(named, protocol, samples.images.count, reference)

    used: dict[str, Any] = {}
    for extractor in extractors:
        used |= extractor.identity
    used |= {f"{name_of(name, 'fd')}_reference": found.description for name, found in references.items()}
    used |= {"samples": samples.description, "protocol": protocol, "settings": settings.fid.model_dump(mode="json")}
    used |= {"torch_fidelity": version("torch-fidelity")}
    metrics = settings.paths.metrics
    write_json(metrics / "fid.json", result | {"used": used, "machine": machine()})
    write_json(metrics / "scores.json", headline_scores(result, [found.name for found in extractors]))
    seconds = round(time.monotonic() - started, 2)
    write_json(metrics / "timings" / "fid.json", [{"seconds": seconds, "resumed": False}])
    return result | {"file": str(metrics / "fid.json")}


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

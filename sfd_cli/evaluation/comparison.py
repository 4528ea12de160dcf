"""From images to features: samples, their reference and what both are seen against, each image read once for all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from sfd_cli.config import Fid, Settings
from sfd_cli.distributed.processes import ALONE, Processes
from sfd_cli.errors import UserError
from sfd_cli.evaluation.extractor import Extractor
from sfd_cli.evaluation.features import FeatureSet, extract
from sfd_cli.evaluation.gaussian import Gaussian
from sfd_cli.evaluation.images import ImageSource
from sfd_cli.evaluation.kept_statistics import keep, recall
from sfd_cli.evaluation.metric import FEWEST_TO_HALVE, Compared, Reconstructed
from sfd_cli.evaluation.reconstructions import open_codec, reconstructed
from sfd_cli.evaluation.reference import Reference
from sfd_cli.evaluation.scores import gaussians_suffice, kinds_compared, kinds_with_baselines
from sfd_cli.evaluation.untrained import UntrainedImages


def compare(
    settings: Settings,
    samples: ImageSource,
    references: dict[str, Reference],
    extractors: list[Extractor],
    processes: Processes = ALONE,
) -> dict[str, dict[str, Compared]]:
    """The features of everything that is compared, by extractor and kind; in the first process, nothing in others.

    The processes share the images and all call this alike.

    Raises:
        UserError: an image is damaged, or there are fewer than two of a kind.
        StageFailure: a feature is not finite.
    """

    def features(images: ImageSource, what: str, wanted: list[Extractor]) -> dict[str, dict[str, FeatureSet]]:
        return extract(images, what, wanted, settings.fid.batch_size, settings.fid.seed, processes)

    distinct = {id(reference): reference for reference in references.values()}.values()
    processes.agree(lambda: _require_two(samples, distinct))
    scored = features(samples, "samples", extractors)
    known = _known_gaussians(settings.fid, references, extractors, processes)
    needed = kinds_compared(settings.fid)
    real: dict[str, dict[str, FeatureSet]] = {}
    returned: dict[str, dict[str, Reconstructed]] = {}
    why_returned = ""
    for reference in distinct:
        mine = [found for found in extractors if references[found.name] is reference]
        wanted = [rest for found in mine if (rest := found.only(needed - known[found.name].keys())).widths]
        if reference.images is not None and wanted:
            real |= features(reference.images, "the reference", wanted)
            for extractor in wanted:
                for kind, seen in real.get(extractor.name, {}).items():
                    keep(reference, extractor, kind, seen.gaussian())
            kinds = kinds_with_baselines(settings.fid)
            returning = [rest for found in wanted if (rest := found.only(kinds)).widths]
            if settings.fid.baselines and returning and reference.images.count >= FEWEST_TO_HALVE:
                codec, why_returned = open_codec(settings, reference.images, processes)
                if codec is not None:
                    options, count = settings.fid, samples.count
                    returned |= reconstructed(codec, options, reference.images, real, returning, count, processes)
    untrained: dict[str, dict[str, FeatureSet]] = {}
    why = ""
    if settings.fid.baselines:
        images, why = _untrained(settings, samples.count, processes)
        if images is not None:
            kinds = kinds_with_baselines(settings.fid)
            untrained = features(images, "an untrained model", [found.only(kinds) for found in extractors])
    if not processes.is_main:
        return {}
    return {
        name: {
            kind: Compared(
                scored[name][kind],
                real.get(name, {}).get(kind),
                known[name].get(kind) or references[name].statistics_of_width(width),
                untrained.get(name, {}).get(kind),
                why,
                returned.get(name, {}).get(kind),
                why_returned,
                extractor.device,
            )
            for kind, width in extractor.widths.items()
        }
        for extractor in extractors
        for name in [extractor.name]
    }


def compare_others(
    compared: dict[str, dict[str, Compared]],
    images: ImageSource,
    what: str,
    extractors: list[Extractor],
    options: Fid,
    processes: Processes = ALONE,
) -> dict[str, dict[str, Compared]]:
    """Other images, `what` they are, in the place of those that were compared: the reference is not looked at again.

    As by `compare`, the result is the first process's, and others get nothing.

    Raises:
        UserError: an image is damaged.
        StageFailure: a feature is not finite.
    """
    features = extract(images, what, extractors, options.batch_size, options.seed, processes)
    return {
        name: {kind: replace(one, samples=features[name][kind]) for kind, one in kinds.items()}
        for name, kinds in compared.items()
    }


def _untrained(settings: Settings, count: int, processes: Processes) -> tuple[UntrainedImages | None, str]:
    """The images of an untrained model, or why there are none: where one process cannot open it, for all."""
    images, why = None, "another process cannot open the models"
    try:
        images = UntrainedImages.open(settings, count, processes.device(settings.runtime.device))
    except UserError as error:
        why = str(error)
    return (None, why) if processes.any(images is None) else (images, "")


def _known_gaussians(
    options: Fid, references: dict[str, Reference], extractors: list[Extractor], processes: Processes
) -> dict[str, dict[str, Gaussian]]:
    """Gaussians of the references that need no look at their images, where no chosen score needs one either.

    They are those that the first process finds: another machine's cache may hold others.
    """

    def found() -> dict[str, dict[str, Gaussian]]:
        known: dict[str, dict[str, Gaussian]] = {extractor.name: {} for extractor in extractors}
        for extractor in extractors if processes.is_main and gaussians_suffice(options) else []:
            reference = references[extractor.name]
            for kind, width in extractor.only(kinds_compared(options)).widths.items():
                gaussian = reference.statistics_of_width(width) or recall(reference, extractor, kind)
                if gaussian is not None:
                    known[extractor.name][kind] = gaussian
        return known

    return processes.broadcast(processes.agree(found))


def _require_two(samples: ImageSource, references: Iterable[Reference]) -> None:
    for subject, images in (("samples", samples), *(("fid.reference", found.images) for found in references)):
        if images is not None and images.count < 2:
            raise UserError(subject, f"has {images.count} image, but a score needs 2", "add images")

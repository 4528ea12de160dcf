"""From images to features: samples, their reference and an untrained model, each image read once for all extractors."""

from __future__ import annotations

from sfd_cli.config import Fid, Settings
from sfd_cli.errors import UserError
from sfd_cli.evaluation.extractors import Extractor
from sfd_cli.evaluation.features import FeatureSet, extract
from sfd_cli.evaluation.gaussian import Gaussian
from sfd_cli.evaluation.images import ImageSource
from sfd_cli.evaluation.kept_statistics import keep, recall
from sfd_cli.evaluation.metric import Compared
from sfd_cli.evaluation.reference import Reference
from sfd_cli.evaluation.scores import gaussians_suffice
from sfd_cli.evaluation.untrained import UntrainedImages
from sfd_cli.processes import choose_device


def compare(
    settings: Settings, samples: ImageSource, references: dict[str, Reference], extractors: list[Extractor]
) -> dict[str, Compared]:
    """The features of everything that is compared, by extractor.

    Raises:
        UserError: an image is damaged, or there are fewer than two of a kind.
        StageFailure: a feature is not finite.
    """

    def features(images: ImageSource, what: str, wanted: list[Extractor]) -> dict[str, FeatureSet]:
        return extract(images, what, wanted, settings.fid.batch_size, settings.fid.seed)

    distinct = {id(reference): reference for reference in references.values()}.values()
    _require_two("samples", samples)
    for reference in distinct:
        _require_two("fid.reference", reference.images)
    scored = features(samples, "samples", extractors)
    known = _known_gaussians(settings.fid, references, extractors)
    real: dict[str, FeatureSet] = {}
    for reference in distinct:
        wanted = [found for found in extractors if references[found.name] is reference and found.name not in known]
        if reference.images is not None and wanted:
            real |= features(reference.images, "the reference", wanted)
            for extractor in wanted:
                keep(reference, extractor, real[extractor.name].gaussian())
    untrained: dict[str, FeatureSet] = {}
    why = ""
    if settings.fid.baselines:
        try:
            images = UntrainedImages.open(settings, samples.count, choose_device(settings.runtime.device))
        except UserError as error:
            why = str(error)
        else:
            untrained = features(images, "an untrained model", extractors)
    return {
        name: Compared(
            scored[name],
            real.get(name),
            known.get(name) or references[name].statistics_of_width(width),
            untrained.get(name),
            why,
        )
        for name, width in ((extractor.name, extractor.width) for extractor in extractors)
    }


def _known_gaussians(
    options: Fid, references: dict[str, Reference], extractors: list[Extractor]
) -> dict[str, Gaussian]:
    """Gaussians of the references that need no look at their images, where no chosen score needs one either."""
    if not gaussians_suffice(options):
        return {}
    found = {
        extractor.name: references[extractor.name].statistics_of_width(extractor.width)
        or recall(references[extractor.name], extractor)
        for extractor in extractors
    }
    return {name: gaussian for name, gaussian in found.items() if gaussian is not None}


def _require_two(subject: str, images: ImageSource | None) -> None:
    if images is not None and images.count < 2:
        raise UserError(subject, f"has {images.count} image, but a score needs 2", "add images")

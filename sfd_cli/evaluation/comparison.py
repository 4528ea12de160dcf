"""From images to features: samples, their reference and an untrained model, each image read once for all extractors."""

from __future__ import annotations

from sfd_cli.config import Settings
from sfd_cli.device import choose_device
from sfd_cli.errors import UserError
from sfd_cli.evaluation.extractors import Extractor
from sfd_cli.evaluation.features import FeatureSet, extract
from sfd_cli.evaluation.images import ImageSource
from sfd_cli.evaluation.metric import Compared, Reference
from sfd_cli.evaluation.reference import ReferenceSource
from sfd_cli.evaluation.untrained import UntrainedImages

Features = dict[str, FeatureSet]


def compare(
    settings: Settings,
    samples: ImageSource,
    references: dict[str, ReferenceSource],
    extractors: list[Extractor],
) -> dict[str, Compared]:
    """The features of everything that is compared, by extractor.

    Args:
        settings: the section `fid`; with `fid.baselines` those of the models that sampled.
        samples: the images to score.
        references: what they are compared with, by extractor.
        extractors: what to compute.

    Raises:
        UserError: an image is damaged, or there are fewer than two.
        StageFailure: a feature is not finite.
    """

    def features(images: ImageSource, what: str, wanted: list[Extractor]) -> Features:
        return extract(images, what, wanted, settings.fid.batch_size, settings.fid.seed)

    for found in (samples, *(source.images for source in references.values())):
        if found is not None and found.count < 2:
            subject, remedy = ("samples", "sample more") if found is samples else ("fid.reference", "give more")
            raise UserError(subject, f"a score needs at least 2 images on either side, found {found.count}", remedy)
    scored = features(samples, "samples", extractors)
    real: Features = {}
    for source in {id(found): found for found in references.values()}.values():
        if source.images is not None:
            wanted = [extractor for extractor in extractors if references[extractor.name] is source]
            real |= features(source.images, "the reference", wanted)
    untrained, why = _untrained(settings, samples.count)
    fresh = {} if untrained is None else features(untrained, "an untrained model", extractors)
    return {
        extractor.name: Compared(
            scored[extractor.name],
            Reference(real.get(extractor.name), references[extractor.name].statistics_of_width(extractor.width)),
            fresh.get(extractor.name),
            why,
        )
        for extractor in extractors
    }


def _untrained(settings: Settings, count: int) -> tuple[ImageSource | None, str]:
    """The images of an untrained model, or why there are none."""
    if not settings.fid.baselines:
        return None, ""
    try:
        return UntrainedImages.open(settings, count, choose_device(settings.runtime.device)), ""
    except UserError as error:
        return None, str(error)

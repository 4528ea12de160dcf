"""What samples are scored against: images, published statistics of their features, or both."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from sfd_cli.config import Settings
from sfd_cli.data.images import ImageManifest, image_files
from sfd_cli.errors import UserError
from sfd_cli.evaluation.gaussian import Gaussian
from sfd_cli.evaluation.images import ImageFiles, ImageSource
from sfd_cli.evaluation.labels import Labels
from sfd_cli.evaluation.npz import npz_labels, open_npz
from sfd_cli.weights.models import locate


@dataclass(frozen=True)
class Reference:
    """Where a reference comes from, before features are computed.

    Attributes:
        description: for `fid.json`.
        images: its images, if there are any.
        statistics: published statistics of their features, of one kind or more.
        contents: fingerprint of the images as an extractor sees them; empty where nobody has hashed them.
        labels: the classes of the images, where they are known.
    """

    description: str
    images: ImageSource | None
    statistics: tuple[Gaussian, ...] = ()
    contents: str = ""
    labels: Labels | None = None

    def statistics_of_width(self, width: int) -> Gaussian | None:
        """The statistics of features of this width, if there are any: nothing else tells what gave them."""
        return next((found for found in self.statistics if found.width == width), None)


def open_references(settings: Settings, widths: Mapping[str, Collection[int]], side: int) -> dict[str, Reference]:
    """What each extractor's features of the samples are compared with.

    That is what `fid.reference` names; the training images where it is unset, and for an extractor of which it says
    nothing: published statistics are of Inception's features, and the DINOv2 distance needs images.

    Args:
        settings: the sections `fid`, `paths` and `runtime` are read.
        widths: numbers per image of each kind of features that are compared, by extractor.
        side: of the samples, to which images in a folder are centre-cropped.

    Raises:
        UserError: it is missing, damaged or something else.
    """
    named = _open_named(settings, side)
    if named.images is not None:
        return dict.fromkeys(widths, named)
    unscored = [name for name, those in widths.items() if not any(map(named.statistics_of_width, those))]
    instead = Reference("none", None)
    if unscored:
        with suppress(UserError):  # without a reference scores are null and say so
            instead = _training_images(settings, side)
    return {name: instead if name in unscored else named for name in widths}


def _open_named(settings: Settings, side: int) -> Reference:
    if settings.fid.reference is None:
        return _training_images(settings, side)
    path = locate(settings.fid.reference, "metric")
    if path.is_dir():
        files = image_files(path)
        images = ImageFiles(files, side, settings.runtime.threads)
        return Reference(str(path), images, labels=Labels.of_folders(path, files))
    if path.suffix == ".npz":
        packed, statistics = open_npz(path)
        told = npz_labels(packed) if packed is not None and settings.fid.by_class else None
        return Reference(str(path), packed, statistics, labels=None if told is None else Labels(told))
    problem = f"{path} is neither a folder of images nor an npz"
    raise UserError("fid.reference", problem, "give one of these, or a name from `sfd weights list`")


def _training_images(settings: Settings, side: int) -> Reference:
    manifest = ImageManifest.load(settings.paths.images)
    files = [manifest.path(index) for index in range(len(manifest))]
    description = f"training images {settings.paths.images} {manifest.fingerprint[:16]}"
    images = ImageFiles(files, side, settings.runtime.threads)
    labels = Labels(np.array(manifest.labels), tuple(manifest.classes))
    return Reference(description, images, contents=f"{manifest.fingerprint} at {side}", labels=labels)

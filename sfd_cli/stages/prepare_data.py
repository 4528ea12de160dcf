"""`sfd prepare-data`: list the images to learn from in a manifest, after drawing or checking them."""

from __future__ import annotations

from typing import Any

from sfd_cli.artifacts.produce import produce
from sfd_cli.artifacts.recipe import Facts, Recipe
from sfd_cli.config import Settings
from sfd_cli.data.image_sources import ImageSet
from sfd_cli.data.images import ImageManifest
from sfd_cli.distributed.processes import Processes
from sfd_cli.tables import IMAGE_SOURCES

STAGE = "prepare-data"
LISTED_CLASSES = 20


def run(settings: Settings) -> dict[str, Any]:
    """Write `manifest.json` and, for the demo set, the images beside it.

    Under torchrun the processes share the check of a folder's images; the demo set and others the first one draws.

    Returns:
        The summary to print: number of images, images per class, and what the source tells, such as corrupt files.

    Raises:
        UserError: the source has no such images.
    """
    target = settings.paths.images
    images: ImageSet = IMAGE_SOURCES[settings.images.source](settings)
    recipe = Recipe(STAGE, target, images.settings, images.inputs, images.free)

    def write(processes: Processes, _: None) -> Facts:
        if not processes.is_main:
            return {}
        manifest = images.write(target)
        return {"images": len(manifest), "classes": manifest.class_counts(), **images.facts}

    metrics = settings.paths.metrics
    produce(recipe, lambda _: None, write, metrics=metrics, is_done=lambda _: images.is_kept, can_mend=lambda _: True)
    return _summary(ImageManifest.load(target)) | images.shown


def _summary(manifest: ImageManifest) -> dict[str, Any]:
    counts = manifest.class_counts()
    few = len(counts) <= LISTED_CLASSES
    return {
        "images": len(manifest),
        "classes": counts if few else f"{len(counts)}, {min(counts.values())} to {max(counts.values())} images each",
    }

"""What a part of the chain alone costs: the Fréchet distance with everything before it perfect.

`reconstructions`: images encoded and decoded, which is the floor of every sample.

`real_semantics`: textures sampled beside the semantics of real images, without guidance (`sfd_cli.evaluation.oracle`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sfd_cli.config import Settings
from sfd_cli.data.images import ImageManifest, ImageReader
from sfd_cli.data.moments import Moments
from sfd_cli.evaluation.extractor import POOLED
from sfd_cli.evaluation.frechet import frechet_distance
from sfd_cli.evaluation.gaussian import Gaussian
from sfd_cli.evaluation.oracle import Oracle
from sfd_cli.evaluation.vision_transformers import class_token_extractor
from sfd_cli.networks.texture_vae import to_pixels, to_signed
from sfd_cli.weights.models import open_texture_vae

BATCH = 100
CPU = torch.device("cpu")


def real_semantics(settings: Settings) -> float:
    """Fréchet distance (DINOv2 class token) of `sample.num_images` such images to the training images."""
    return Oracle.open(settings).distance_with_real_semantics()


@torch.inference_mode()
def reconstructions(settings: Settings) -> float:
    """Fréchet distance (DINOv2 class token) of all training images, encoded and decoded, to themselves."""
    codec, extract = open_texture_vae(settings).load(), class_token_extractor(settings.fid.encoder, CPU)
    features, real = [], []
    for images in training_images(settings):
        mean, _ = codec.encode(to_signed(images))
        features.append(extract(to_pixels(codec.decode(mean)))[POOLED])
        real.append(extract(images)[POOLED])
    return distance(features, real)


def training_images(settings: Settings) -> Iterator[Tensor]:
    """All of them, uint8 (n, 3, S, S), in batches."""
    manifest = ImageManifest.load(settings.paths.images)
    starts = range(0, len(manifest), BATCH)
    return ImageReader(manifest, settings.images.size).iterate(
        [range(start, min(start + BATCH, len(manifest))) for start in starts]
    )


def distance(features: list[Tensor], real: list[Tensor]) -> float:
    """Fréchet distance between two sets of features (n, D), in batches."""
    ours, theirs = (
        Gaussian.of(Moments.of(torch.cat(rows).double().numpy(), scatter=True)) for rows in (features, real)
    )
    return frechet_distance(ours, theirs)

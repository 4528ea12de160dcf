"""What a part of the chain alone costs: the Fréchet distance with everything before it perfect.

`reconstructions`: images encoded and decoded, which is the floor of every sample.

`real_semantics`: textures sampled beside the semantics of real images. Semantics go on the straight line from their
noise to a real image's, by the same law of times as in sampling, so that the transformer sees what it was trained on;
textures are its own. Without guidance; the images are spread over the training set.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sfd_cli.config import Settings
from sfd_cli.data.images import ImageManifest, ImageReader
from sfd_cli.data.moments import Moments
from sfd_cli.data.store import Store
from sfd_cli.diffusion.guidance import VelocityField
from sfd_cli.diffusion.latents import LatentSpace, Streams
from sfd_cli.diffusion.schedule import schedule_of
from sfd_cli.diffusion.solver import integrate
from sfd_cli.evaluation.extractors import class_token_extractor
from sfd_cli.evaluation.frechet import frechet_distance
from sfd_cli.evaluation.gaussian import Gaussian
from sfd_cli.networks.texture_vae import to_pixels, to_signed
from sfd_cli.pipeline.models import SamplingModels
from sfd_cli.weights.models import open_texture_vae

BATCH = 100
CPU = torch.device("cpu")


def latents_of(store: Store, rows: np.ndarray, space: LatentSpace) -> Tensor:
    """Normalised composite latents (n, C, h, w) of unmirrored images."""
    flips = np.zeros(len(rows), np.int64)
    texture, semantic = (torch.from_numpy(store.read(name, rows, flips)) for name in ("texture", "semantic"))
    return space.join(Streams(texture, semantic))


def with_semantics(velocity: VelocityField, semantic: Tensor, space: LatentSpace) -> VelocityField:
    """The field with this velocity (B, C_s, h, w) of the semantic channels in place of its own."""

    def field(x: Tensor, t_texture: Tensor, t_semantic: Tensor, rows: Tensor) -> Tensor:
        own = space.views(velocity(x, t_texture, t_semantic, rows))
        return torch.cat((own.texture, semantic), dim=1)

    return field


@torch.inference_mode()
def real_semantics(settings: Settings) -> float:
    """Fréchet distance (DINOv2 class token) of `sample.num_images` such images to the training images."""
    sample = settings.sample.model_copy(update={"guidance": "none"})
    sampler = SamplingModels.open(settings.model_copy(update={"sample": sample})).load(sample, CPU)
    store, space = Store(settings.paths.latents), sampler.space
    rows = np.linspace(0, len(store) - 1, sample.num_images).round().astype(np.int64)
    extract = class_token_extractor(settings.fid.encoder, CPU)
    generator, features = torch.Generator().manual_seed(sample.seed), []
    for start in range(0, len(rows), BATCH):
        here = rows[start : start + BATCH]
        data = latents_of(store, here, space)
        noise = torch.randn(data.shape, generator=generator)
        velocity = with_semantics(sampler.dit, space.views(data - noise).semantic, space)
        labels = torch.from_numpy(store.labels[here])
        found = integrate(velocity, noise, labels, schedule_of(sample), space, solver=sample.solver, steps=sample.steps)
        features.append(extract(sampler.decode(found)))
    return distance(features, [extract(images) for images in training_images(settings)])


@torch.inference_mode()
def reconstructions(settings: Settings) -> float:
    """Fréchet distance (DINOv2 class token) of all training images, encoded and decoded, to themselves."""
    codec, extract = open_texture_vae(settings).load(), class_token_extractor(settings.fid.encoder, CPU)
    features, real = [], []
    for images in training_images(settings):
        mean, _ = codec.encode(to_signed(images))
        features.append(extract(to_pixels(codec.decode(mean))))
        real.append(extract(images))
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

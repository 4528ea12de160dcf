"""Images of an untrained model: the ceiling that a score is seen against."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from sfd_cli.config import Settings
from sfd_cli.evaluation.sampled_images import SampledImages
from sfd_cli.networks.lightning_dit import LightningDiT
from sfd_cli.pipeline.inputs import SampleInputs
from sfd_cli.pipeline.models import SamplingModels
from sfd_cli.pipeline.sampler import Sampler

# A fresh transformer's last layer is zero (as in DiT), so noise stays where it is whatever the number of steps.
STEPS = 2


@dataclass(frozen=True)
class UntrainedImages(SampledImages):
    """The images `indices` that `sfd sample` would give had the network never been trained.

    The same architecture with seeded random weights and the same texture VAE; noise and labels follow from
    `sample.seed`, even where the samples were made from files of noise and labels; no guidance.
    """

    @classmethod
    def open(cls, settings: Settings, count: int, device: torch.device) -> Self:
        """Load the models that are needed; the images are the first `count`.

        Raises:
            UserError: one is missing or damaged.
        """
        plain = {"guidance": "none", "solver": "euler", "steps": STEPS}
        sample = settings.sample.without_edits().model_copy(update=plain)
        trained = SamplingModels.open(settings.model_copy(update={"sample": sample})).load(sample, device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.fid.seed)
            network = LightningDiT(trained.dit.config)
        untrained = replace(trained, dit=network.to(device).eval().requires_grad_(False))
        return cls(untrained, SampleInputs.open(sample), range(count))

    def batches(self, size: int) -> Iterator[Tensor]:
        """See `ImageSource`; sampled in batches of that size, for no bytes of `sfd sample` are to be matched."""
        for _, images in self._at_once(size).batches(self.inputs, self.indices):
            yield images

    def semantics(self, size: int) -> Iterator[Tensor]:
        """The semantic latents (n, C_s, h, w) of the images, not normalised."""
        sampler = self._at_once(size)
        for _, latents in sampler.latent_batches(self.inputs, self.indices):
            yield sampler.space.split(latents).semantic

    def _at_once(self, size: int) -> Sampler:
        return replace(self.sampler, sample=self.sampler.sample.model_copy(update={"batch_size": size}))

"""Images of an untrained model: the ceiling that a score is seen against."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from sfd_cli.config import Settings
from sfd_cli.networks.lightning_dit import LightningDiT
from sfd_cli.pipeline.inputs import SampleInputs
from sfd_cli.pipeline.sampler import Sampler

# A fresh transformer's last layer is zero (as in DiT), so noise stays where it is whatever the number of steps.
STEPS = 2


@dataclass(frozen=True)
class UntrainedImages:
    """The first `count` images that `sfd sample` would give had the network never been trained.

    The same architecture with seeded random weights and the same texture VAE; noise and labels follow from
    `sample.seed`, also where the samples were made from given ones; no guidance.
    """

    sampler: Sampler
    inputs: SampleInputs
    count: int

    @classmethod
    def open(cls, settings: Settings, count: int, device: torch.device) -> Self:
        """Load the models that are needed.

        Raises:
            UserError: one is missing or damaged.
        """
        plain = {"guidance": "none", "solver": "euler", "steps": STEPS}
        sample = settings.sample.model_copy(update=plain)
        trained = Sampler.load(settings.model_copy(update={"sample": sample}), device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.fid.seed)
            network = LightningDiT(trained.flow.dit.config)
        flow = replace(trained.flow, dit=network.to(device).eval().requires_grad_(False))
        return cls(replace(trained, flow=flow), SampleInputs.open(sample), count)

    def batches(self, size: int) -> Iterator[Tensor]:
        """See `ImageSource`."""
        for start in range(0, self.count, size):
            images = self.sampler.images(self.inputs, range(start, min(start + size, self.count)))
            yield torch.from_numpy(images).permute(0, 3, 1, 2)

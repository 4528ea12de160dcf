"""Images of an untrained model: the ceiling that a score is seen against."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from sfd_cli.config import Settings
from sfd_cli.networks.lightning_dit import LightningDiT
from sfd_cli.pipeline.inputs import SampleInputs
from sfd_cli.pipeline.sampler import Sampler

# A fresh transformer's last layer is zero (as in DiT), so noise stays where it is whatever the number of steps.
STEPS = 2


def untrained_images(settings: Settings, count: int, device: torch.device) -> Iterator[Tensor]:
    """The first `count` images that `sfd sample` would give had the network never been trained.

    The same architecture with seeded random weights and the same texture VAE; noise and labels follow from
    `sample.seed`, also where the samples were made from given ones; no guidance.

    Returns:
        Batches of uint8 (n, 3, H, W).

    Raises:
        UserError: a model is missing or damaged; at once, not when the first batch is asked for.
    """
    plain = {"guidance": "none", "solver": "euler", "steps": STEPS}
    sample = settings.sample.model_copy(update=plain)
    trained = Sampler.load(settings.model_copy(update={"sample": sample}), device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.fid.seed)
        network = LightningDiT(trained.flow.dit.config)
    flow = replace(trained.flow, dit=network.to(device).eval().requires_grad_(False))
    untrained, inputs = replace(trained, flow=flow), SampleInputs.open(sample)
    size = settings.fid.batch_size
    starts = range(0, count, size)
    arrays = (untrained.images(inputs, range(start, min(start + size, count))) for start in starts)
    return (torch.from_numpy(array).permute(0, 3, 1, 2) for array in arrays)

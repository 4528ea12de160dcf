"""What seeds draw: noise and labels of every image, which depend on the seed and the image's index alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

# Tells the stream of numbers that labels are drawn from from that of an image's noise.
LABEL = 1


def initial_noise(seed: int, indices: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal noise (n, *shape) float32 on the CPU; each image's depends on `seed` and its index alone."""

    return torch.stack([torch.randn(tuple(shape), generator=image_generator(seed, index)) for index in indices])


def step_noise(seed: int, indices: Sequence[int], shape: Sequence[int]) -> Callable[[], Tensor]:
    """Draws standard normal noise (n, *shape) float32 on the CPU, new at every call, for a stochastic solver's steps.

    Each image's depends on `seed` and its index alone: it is what its generator draws after the image's initial noise.
    """
    generators = [image_generator(seed, index) for index in indices]

    def draw() -> Tensor:
        return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])

    draw()
    return draw


def image_generator(seed: int, index: int) -> torch.Generator:
    """The generator, on the CPU, of image `index` of every run with this seed."""
    state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def balanced_labels(indices: Sequence[int], classes: Sequence[int]) -> Tensor:
    """Labels (n,) int64 that go through `classes` in turn, so that any run of images has all equally often."""
    return torch.tensor([classes[index % len(classes)] for index in indices])


def random_labels(seed: int, indices: Sequence[int], classes: Sequence[int]) -> Tensor:
    """Labels (n,) int64 drawn from `classes` with equal chances; each image's depends on `seed` and its index alone."""
    draws = [np.random.default_rng([seed, index, LABEL]).integers(len(classes)) for index in indices]
    return torch.tensor([classes[int(draw)] for draw in draws])

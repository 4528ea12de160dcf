"""The images of `sfd sample` without their files: from the sampler into the extractors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from sfd_cli.pipeline.inputs import SampleInputs
from sfd_cli.pipeline.sampler import Sampler


@dataclass(frozen=True)
class SampledImages:
    """Images that are sampled when they are asked for.

    Attributes:
        sampler: makes them, in batches of its own size: the bytes are those of `sfd sample`.
        inputs: noise and labels of the run.
        indices: the images of the run that are wanted, ascending.
    """

    sampler: Sampler
    inputs: SampleInputs
    indices: Sequence[int]

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.indices)

    def at(self, indices: Sequence[int]) -> Self:
        """See `ImageSource`."""
        return replace(self, indices=[self.indices[index] for index in indices])

    def batches(self, size: int) -> Iterator[Tensor]:
        """See `ImageSource`."""
        waiting: list[Tensor] = []
        for _, images in self.sampler.batches(self.inputs, self.indices):
            waiting.append(images)
            if sum(map(len, waiting)) >= size:
                *whole, rest = torch.cat(waiting).split(size)
                if len(rest) == size:
                    whole, rest = [*whole, rest], rest[:0]
                yield from whole
                waiting = [rest]
        if left := sum(map(len, waiting)):
            assert left < size
            yield torch.cat(waiting)

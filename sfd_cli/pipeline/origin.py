"""A picture that images are made of, as the sampler uses it: its latents, what of them is kept, where to begin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sfd_cli.diffusion.latents import LatentSpace
from sfd_cli.diffusion.schedule import Schedule
from sfd_cli.pipeline.held import Held


@dataclass(frozen=True)
class Origin:
    """An encoded picture.

    Attributes:
        latents: its normalised composite latents, (1, C, h, w).
        kept: the part that images have as it is, bool (1, C, h, w); None: nothing.
        start: the part of the schedule at which they begin, 0 with noise alone, 1 with the picture itself (SDEdit,
            arXiv 2108.01073).
    """

    latents: Tensor
    kept: Tensor | None = None
    start: float = 0.0

    def begin(self, noise: Tensor, schedule: Schedule, space: LatentSpace) -> tuple[float, Tensor]:
        """The progress at which images begin, and their latents (B, C, h, w) there.

        Each stream is the picture with as much of `noise` (B, C, h, w) as its own time at that point of the path says.
        """
        if self.start == 0:
            return 0.0, noise
        if self.start == 1:
            return schedule.end, self.latents.expand_as(noise).clone()
        progress = self.start * schedule.end
        times = schedule.times(torch.tensor([progress], dtype=torch.float64))
        time = space.spread(times).to(noise)
        return progress, (1 - time) * noise + time * self.latents

    def redrawn(self, solve: Callable[..., Tensor], noise: Tensor, schedule: Schedule, space: LatentSpace) -> Tensor:
        """Normalised composite latents (B, C, h, w) that are made of the picture and of noise (B, C, h, w).

        `solve` integrates from latents on, by the keywords `start` and `amend` of `diffusion.solver.integrate`.
        """
        start, latents = self.begin(noise, schedule, space)
        if self.kept is None:
            return solve(latents, start=start)
        held = Held(self.kept, noise, self.latents)
        return held.latents_in(solve(latents, start=start, amend=held.amend(space)))

"""Times to train at: drawn along a schedule or around it, and what each stream's error weighs there.

The paper draws the progress T itself, so that along an asynchronous schedule textures are seen near noise more often
than along the synchronous one, semantics near data, and errors of a stream that stands still count. The corrected
objective fixes the density q of the times that each stream sees instead, whatever the schedule:

    p(T) = [q(t_s) t_s' + q(t_z) t_z'] / 2,   w_k = q(t_k) t_k' / p(T),

a draw "as the semantics need it" or "as the textures need it", each half of the time. The expectation of w_k f(t_k)
over p is that of f over q, for any f; the two weights add up to 2, so that none is large; a stream that stands still
has weight 0. Along the synchronous schedule both are 1, and nothing is different.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sfd_cli.devices import finest
from sfd_cli.diffusion.latents import Streams
from sfd_cli.diffusion.schedule import TimesOnly, progress_of, rates_of, with_lead

Draws = dict[str, Tensor]

SHARE_DRAWS = 2**16


@dataclass(frozen=True)
class TrainingTimes:
    """How the times of a training are drawn; `schedule` is the path that sampling takes.

    Args:
        schedule: the law.
        objective: "paper" draws T as a logit-normal stretched over the schedule; "corrected" see above.
        mean: of the normal behind the logit-normal; negative is nearer to noise.
        lead_jitter: every image has a lead of its own in logit time, uniform in plus and minus this around the path.
        leader_noise: where the semantics have arrived and the textures have not, the network is shown semantics at a
            time uniform in [1 - leader_noise, 1], as sampled ones are never exact (arXiv 2602.11401).
    """

    schedule: TimesOnly
    objective: Literal["paper", "corrected"] = "paper"
    mean: float = 0.0
    lead_jitter: float = 0.0
    leader_noise: float = 0.0

    def draw_level(self, count: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
        """A logit-normal(`mean`, 1) draw (count,) float32, of which times are made (arXiv 2403.03206, section 3.1).

        `generator` must live on `device`.
        """
        return (torch.randn(count, generator=generator, device=device) + self.mean).sigmoid()

    def draw_further(self, count: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Draws:
        """What else decides the times, as far as it is needed: by_texture (bool), lead and leader, all (count,)."""
        draws: Draws = {}
        if self.objective == "corrected":
            draws["by_texture"] = torch.rand(count, generator=generator, device=device) < 0.5
        if self.lead_jitter:
            draws["lead"] = self.lead_jitter * (2 * torch.rand(count, generator=generator, device=device) - 1)
        if self.leader_noise:
            draws["leader"] = 1 - self.leader_noise * torch.rand(count, generator=generator, device=device)
        return draws

    def of(self, draws: Draws) -> tuple[Streams[Tensor], Streams[Tensor] | None]:
        """Times to show the network, and the weights of both streams' errors, each (count,); None where all are 1.

        `draws` has the level under that name, and what `draw_further` gave.
        """
        path = self._path(draws)
        progress = self._progress(path, draws)
        times = path.times(progress)
        weights = None
        if self.objective == "corrected":
            needs = torch.stack([self._need(*one) for one in zip(times, rates_of(path, progress), strict=True)])
            both = needs.sum(0).clamp(min=torch.finfo(needs.dtype).tiny)
            weights = Streams(*((2 * need / both).to(progress.dtype) for need in needs))
        return self._with_leader(times, draws), weights

    def shares(self) -> Streams[float]:
        """Of all draws, how many each stream learns from: what asynchrony costs.

        For the corrected objective the effective sample size of its weighted mean, (E w)^2 / E w^2 (Kish, 1965): 1
        along the synchronous schedule, a half where one stream waits for the other to be done. For the paper's the
        share of the draws in which the stream moves, which can be less. Estimated by SHARE_DRAWS draws, the
        same each time.
        """
        generator = torch.Generator().manual_seed(0)
        draws = {"level": self.draw_level(SHARE_DRAWS, generator)} | self.draw_further(SHARE_DRAWS, generator)
        weights = self.of(draws)[1]
        if weights is None:
            path = self._path(draws)
            return Streams(*((rate > 0).double().mean().item() for rate in rates_of(path, self._progress(path, draws))))
        return Streams(*((w.double().mean().square() / w.double().square().mean()).item() for w in weights))

    def _path(self, draws: Draws) -> TimesOnly:
        return ShiftedLead(self.schedule, draws["lead"]) if self.lead_jitter else self.schedule

    def _progress(self, path: TimesOnly, draws: Draws) -> Tensor:
        level = draws["level"]
        if self.objective == "paper":
            return level * path.end
        return progress_of(path, level, draws["by_texture"])

    def _need(self, time: Tensor, rate: Tensor) -> Tensor:
        """q(t) t' without the factor 1 / sqrt(2 pi), in the finest format there is; 0 where the stream stands still."""
        time, rate = (one.to(finest(one.device)) for one in (time, rate))
        moves = (rate > 0) & (time > 0) & (time < 1)
        inside = torch.where(moves, time, torch.full_like(time, 0.5))
        density = (-((inside.logit() - self.mean).square()) / 2).exp() / (inside * (1 - inside))
        return torch.where(moves, density * rate, torch.zeros_like(rate))

    def _with_leader(self, times: Streams[Tensor], draws: Draws) -> Streams[Tensor]:
        if not self.leader_noise:
            return times
        waits = (times.semantic >= 1) & (times.texture < 1)
        return times._replace(semantic=torch.where(waits, draws["leader"], times.semantic))


@dataclass(frozen=True)
class ShiftedLead:
    """`schedule` with a lead of each image's own, `lead` (B,) in logit time, on top; half of it for either stream."""

    schedule: TimesOnly
    lead: Tensor

    @property
    def end(self) -> float:
        """See `TimesOnly`."""
        return self.schedule.end

    def times(self, progress: Tensor) -> Streams[Tensor]:
        """See `TimesOnly`; `progress` is (B,)."""
        return with_lead(self.schedule.times(progress), self.lead)

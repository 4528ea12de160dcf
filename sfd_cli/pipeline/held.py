"""Parts of latents that are given instead of drawn, and recordings of runs, of which a part can be given to another.

The network was trained on noisy latents whose streams are all on their way; so a given part is not pasted in at the
end but goes from its noise to what it becomes while the rest is drawn beside it. It goes there as it went in the run
that it is taken from, call by call of the solver, or on the straight line at the pace of its stream's time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from sfd_cli.config import Sample
from sfd_cli.diffusion.latents import LatentSpace, Streams
from sfd_cli.diffusion.schedule import Phase
from sfd_cli.diffusion.solver import Amend, OnPoint, Slope
from sfd_cli.laws import law_of
from sfd_cli.tables import SOLVERS

StreamNames = Literal["both", "textures", "semantics"]
Rectangle = tuple[int, int, int, int]
"""First and last row, first and last column of cells of the latent's grid, counted from 0; both ends are inside."""


@dataclass(frozen=True)
class Held:
    """A part of composite latents that is given.

    Attributes:
        mask: bool, which spreads to (B, C, h, w): the part.
        noise: (B, C, h, w), or of one image for all: where it starts.
        latents: likewise, normalised: where it ends.
        slopes: its dx/dT at every call of the solver in turn, of a run with the same law, solver and steps; None: it
            goes on the straight line.
    """

    mask: Tensor
    noise: Tensor
    latents: Tensor
    slopes: tuple[Tensor, ...] | None = None

    def noise_in(self, noise: Tensor) -> Tensor:
        """`noise` (B, C, h, w), with the part's own in its place."""
        return torch.where(self.mask, self.noise, noise)

    def latents_in(self, latents: Tensor) -> Tensor:
        """`latents` (B, C, h, w), with what the part becomes in its place."""
        return torch.where(self.mask, self.latents, latents)

    def amend(self, space: LatentSpace) -> Amend:
        """See `solver.Amend`: the part's own slope in its place; for one integration.

        Where nothing else moves the network is not called.
        """
        own = self._straight(space) if self.slopes is None else self._recorded(self.slopes)

        def amend(slope: Slope, phase: Phase) -> Slope:
            still = ~space.spread(Streams(*(torch.tensor([bool(moves)]) for moves in phase.moves)))
            if bool((self.mask | still.to(self.mask.device)).all()):
                return lambda progress, x: own(progress, phase).expand_as(x)
            return lambda progress, x: torch.where(self.mask, own(progress, phase), slope(progress, x))

        return amend

    def _straight(self, space: LatentSpace) -> Callable[[float, Phase], Tensor]:
        way = self.latents - self.noise

        def own(progress: float, phase: Phase) -> Tensor:
            rates = Streams(*(torch.tensor([rate], dtype=way.dtype) for rate in phase.rates(progress)))
            return space.spread(rates).to(way.device) * way

        return own

    @staticmethod
    def _recorded(slopes: tuple[Tensor, ...]) -> Callable[[float, Phase], Tensor]:
        following = iter(slopes)
        return lambda progress, phase: next(following)


@dataclass(frozen=True)
class Recording:
    """A run from noise to latents.

    Attributes:
        points: T and the latents (B, C, h, w) there, from the noise at T = 0 to what came of it, after every step.
        slopes: dx/dT of every call of the solver, in turn.
        way: law, solver and steps by which it went, see `way_of`.
    """

    points: tuple[tuple[float, Tensor], ...]
    slopes: tuple[Tensor, ...]
    way: dict[str, Any]

    @property
    def latents(self) -> Tensor:
        """What came of it: normalised composite latents (B, C, h, w)."""
        return self.points[-1][1]

    def held(self, mask: Tensor, sample: Sample) -> Held:
        """The part `mask` of it for a run by `sample`: step by step as it went, or straight where that goes otherwise.

        On the noise it was drawn from and by the same settings, what is drawn beside it is what was: nothing changes.
        """
        repeatable = self.way == way_of(sample) and not SOLVERS[sample.solver].is_adaptive
        return Held(mask, self.points[0][1], self.latents, self.slopes if repeatable else None)


@dataclass
class Recorder:
    """Keeps the points and slopes of one integration, amended by `before` and told to `tell` where these are given."""

    before: Amend | None = None
    tell: OnPoint | None = None
    points: list[tuple[float, Tensor]] = field(default_factory=list)
    slopes: list[Tensor] = field(default_factory=list)

    def on_point(self, progress: float, x: Tensor) -> None:
        """See `solver.OnPoint`."""
        self.points.append((progress, x))
        if self.tell is not None:
            self.tell(progress, x)

    def amend(self, slope: Slope, phase: Phase) -> Slope:
        """See `solver.Amend`: the same slope, kept at every call."""
        inner = slope if self.before is None else self.before(slope, phase)

        def kept(progress: float, x: Tensor) -> Tensor:
            self.slopes.append(inner(progress, x))
            return self.slopes[-1]

        return kept

    def recording(self, latents: Tensor, way: dict[str, Any]) -> Recording:
        """What was kept, which ends with `latents`."""
        *before, (end, _) = self.points
        return Recording((*before, (end, latents)), tuple(self.slopes), way)


def way_of(sample: Sample) -> dict[str, Any]:
    """What decides at which times a run with steps of fixed length asks for slopes."""
    keys = ("solver", "steps", "time_grid", "shift")
    return law_of(sample) | {key: getattr(sample, key) for key in keys}


def part_of(
    space: LatentSpace,
    streams: StreamNames = "both",
    cells: Rectangle | None = None,
    inside: bool = True,
    device: torch.device | str = "cpu",
) -> Tensor:
    """A mask (1, C, h, w) for `Held`: a rectangle of cells in one stream or both, or all but the rectangle.

    Without `cells` the whole grid; `inside` is then of no effect.
    """
    grid = torch.ones(space.grid, space.grid, dtype=torch.bool)
    if cells is not None:
        top, bottom, left, right = cells
        grid[:] = not inside
        grid[top : bottom + 1, left : right + 1] = inside
    return cells_of(space, streams, grid).to(device)


def cells_of(space: LatentSpace, streams: StreamNames, cells: Tensor) -> Tensor:
    """A mask (1, C, h, w): the cells, bool (h, w), in one stream or both."""
    whose = {"both": (True, True), "textures": (True, False), "semantics": (False, True)}[streams]
    channels = space.spread(Streams(*(torch.tensor([one]) for one in whose)))
    return channels & cells

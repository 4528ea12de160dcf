"""Which schedule a network's own errors speak for: a criterion on held-out images, and its answer with an error bar.

Seen as channels of Gaussian noise, both streams of an image are revealed along a path in the plane of their logit
times l_k = ln(t_k / (1 - t_k)), whose signal-to-noise ratios are gamma_k = exp(2 l_k). By I-MMSE (Guo, Shamai and
Verdu, 2005)

    J(C) = 1/2 int_C  M_texture d gamma_texture + M_semantic d gamma_semantic      (nats an image)

is the same for every path C between the same ends if M_k are the errors of the exact posterior means. A network's
are larger, and J(A) - J(B) is the difference of its excess along A and along B alone: of the bound on the divergence
between what it samples and the data. So the path of least J is the one on which this network is least wrong; J of one
path by itself says nothing. With e_k the squared error of the velocity, summed over the stream, M_k = (1 - t_k)^2 e_k
and

    J(C) = int_C  t_texture^2 e_texture d l_texture + t_semantic^2 e_semantic d l_semantic,

which is linear in the errors: a path is a matrix of weights on the grid where they are known, and every image has a J.
Between the levels errors are interpolated by natural cubic splines, along both axes. How much that matters is told by
straight lines instead: where errors bend sharply between levels the two differ by more than chance does.

A network has an excess for more reasons than one. Beside finished semantics textures may be easier than beside noisy
ones whatever these say. So J is also taken on a *control*, images whose semantics are those of others: what a path
gains there as well it does not gain by what the streams tell of one another.

Of semantics only what shapes textures counts, for they are never decoded. So paths end where semantics are still seen
through some noise (`semantic_end`): J then bounds the divergence of textures and of semantics seen so, and with it that
of textures alone. Exact errors give every path to that end the same J as well.

Paths have a constant lead in logit time, from the lowest level of both streams to their ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.interpolate import make_interp_spline
from torch import Tensor

from sfd_cli.diffusion.latents import Streams
from sfd_cli.diffusion.schedule import AsynchronousSchedule, Schedule

LEADS = tuple(0.25 * step for step in range(-8, 21))
STEPS = 1000
"""Steps of the quadrature along a path."""
REACH = 12.0
"""Logit of progress up to which a phase of a law is divided: nothing happens beyond."""
LINEAR, CUBIC = 1, 3
ENDS = {LINEAR: None, CUBIC: "natural"}
"""Degrees of splines, and what they do at the first and the last level."""
CLEAR, EXACT = 2.0, 1e-4
"""A preferred path is better than the synchronous one by so many times its errors, of chance and of interpolation, and
by this share of J, which is more than what the quadrature gets wrong."""


@dataclass(frozen=True)
class ErrorSurface:
    """A network's errors at pairs of noise levels, of held-out images.

    Attributes:
        levels: (n,) ascending logit times, the same for both streams.
        errors: squared errors of the velocity, summed over each stream, (images, n, n), indexed by the levels of
            texture and then semantics.
        clusters: (images,) int64; images of one cluster are near-duplicates and count as one.
        semantic_end: logit time of semantics at which paths end; they wait there for textures, which go on to the last
            level.
    """

    levels: Tensor
    errors: Streams[Tensor]
    clusters: Tensor
    semantic_end: float = math.inf

    def per_cluster(self) -> Streams[Tensor]:
        """Means over the images of each cluster: (clusters, n, n), float64."""
        _, members = self.clusters.unique(return_inverse=True)
        counts = torch.bincount(members).double()[:, None, None]

        def mean(errors: Tensor) -> Tensor:
            total = torch.zeros(len(counts), *errors.shape[1:], dtype=torch.float64)
            return total.index_add_(0, members, errors.double()) / counts

        return Streams(*map(mean, self.errors))


class Preference(NamedTuple):
    """What the criterion says.

    Attributes:
        lead: of the path of least J, in logit time.
        gap: J of a path chosen on half of the clusters minus that of the synchronous path, on the other half; nats an
            image, below 0 where the path is better.
        standard_error: of the gap, over clusters.
        lattice_gap: the same, not held out, of the best monotone path on the grid, whatever its shape: how much
            constant leads leave.
        lead_gap: the same, not held out, of the best constant lead.
        synchronous: J of the synchronous path, nats an image.
        related_gap: the gap less that of the same path on the control: what it gains because of what the streams tell
            of one another.
        related_error: standard error of this, over clusters.
        interpolation: by how much the gap is another if errors between the levels lie on straight lines.
    """

    lead: float
    gap: float
    standard_error: float
    lattice_gap: float
    lead_gap: float
    synchronous: float
    related_gap: float
    related_error: float
    interpolation: float = 0.0

    @property
    def is_clear(self) -> bool:
        """Whether the path is better than the synchronous one by more than its errors, see CLEAR and EXACT."""
        return self.gap + CLEAR * (self.standard_error + self.interpolation) < -EXACT * abs(self.synchronous)


class Gap(NamedTuple):
    """What the criterion says of one law of times.

    Attributes:
        gap: J of its path minus that of the synchronous one, nats an image; below 0 where it is better.
        standard_error: of the gap, over clusters.
        related_gap: the gap less that on the control.
        related_error: standard error of this, over clusters.
        trained_on_gap: the gap on images that the network was trained on. Where it is the smaller one, the network has
            learnt by heart along the path what it does not know of other images.
        trained_on_error: standard error of this, over clusters.
    """

    gap: float
    standard_error: float
    related_gap: float
    related_error: float
    trained_on_gap: float
    trained_on_error: float


def gap_along(surface: ErrorSurface, control: ErrorSurface, trained_on: ErrorSurface, schedule: Schedule) -> Gap:
    """The criterion for a law that was not chosen by these errors, so that all of them judge it.

    Args:
        surface: errors on held-out images.
        control: errors on the same images beside others' semantics, in the same order.
        trained_on: errors on images that the network was trained on.
        schedule: any law.
    """
    own, others, seen = (
        along(found, schedule) - along(found, AsynchronousSchedule(0.0)) for found in (surface, control, trained_on)
    )
    return Gap(*_mean(own), *_mean(own - others), *_mean(seen))


def _mean(values: Tensor) -> tuple[float, float]:
    """Mean of values (n,), and its standard error."""
    return values.mean().item(), values.std().item() / len(values) ** 0.5


def along(surface: ErrorSurface, schedule: Schedule) -> Tensor:
    """J of a law for every cluster of the images, (clusters,) float64, nats an image."""
    return _values(surface.per_cluster(), schedule_weights(surface.levels, schedule, surface.semantic_end))


def preferred(surface: ErrorSurface, control: ErrorSurface, leads: tuple[float, ...] = LEADS) -> Preference:
    """The path of least J among all leads, judged on clusters that did not choose it.

    The clusters are split in two; each half is judged by the path that the other half chooses, as the least of many
    noisy values is too small on the images that chose it.

    Args:
        surface: errors on held-out images.
        control: errors on the same images beside others' semantics, in the same order.
        leads: to choose from.

    Raises:
        ValueError: there are fewer than four clusters.
    """
    errors, strangers, end = surface.per_cluster(), control.per_cluster(), surface.semantic_end
    count = len(errors.texture)
    if count < 4:
        raise ValueError(f"{count} clusters of held-out images are too few to judge by")
    every_lead = torch.tensor(leads, dtype=torch.float64)

    def gaps_of(errors: Streams[Tensor], degree: int = CUBIC) -> Tensor:
        """Gaps of all leads, (clusters, paths)."""
        straight = path_weights(surface.levels, 0.0, semantic_end=end, degree=degree)
        paths = path_weights(surface.levels, every_lead, semantic_end=end, degree=degree)
        return _values(errors, paths) - _values(errors, straight)[:, None]

    gaps = gaps_of(errors)
    every = torch.stack((gaps, gaps - gaps_of(strangers), gaps - gaps_of(errors, LINEAR)))
    halves = torch.arange(count) % 2 == 0
    judged = torch.empty(3, count, dtype=torch.float64)
    for choosing in (halves, ~halves):
        chosen = gaps[choosing].mean(0).argmin()
        judged[:, ~choosing] = every[:, ~choosing, chosen]
    (gap, standard_error), (related_gap, related_error), (interpolation, _) = map(_mean, judged)
    means = gaps.mean(0)
    synchronous = _values(errors, path_weights(surface.levels, 0.0, semantic_end=end)).mean().item()
    mean_errors = Streams(*(error.mean(0) for error in errors))
    return Preference(
        lead=leads[int(means.argmin())],
        gap=gap,
        standard_error=standard_error,
        lattice_gap=least_on_lattice(surface.levels, mean_errors, end) - synchronous,
        lead_gap=means.min().item(),
        synchronous=synchronous,
        related_gap=related_gap,
        related_error=related_error,
        interpolation=abs(interpolation),
    )


def path_weights(
    levels: Tensor,
    lead: float | Tensor,
    *,
    semantic_end: float = math.inf,
    steps: int = STEPS,
    degree: int = CUBIC,
) -> Streams[Tensor]:
    """A path of constant lead as weights (n, n) on either stream's errors, so that J is the sum of their products.

    The path begins at the lowest level of both streams and ends at the highest, or with semantics at `semantic_end`: a
    stream waits at either end until the other one is there. Errors between the levels are interpolated by splines of
    this degree. Leads (paths,) give weights (paths, n, n).
    """
    low, high = levels[0].item(), levels[-1].item()
    ahead = torch.as_tensor(lead, dtype=torch.float64)[..., None] / 2
    reach = ahead.abs()
    even = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    level = low - reach + (high - low + 2 * reach) * even
    return _weights(levels, Streams(level - ahead, level + ahead), semantic_end, degree)


def schedule_weights(
    levels: Tensor, schedule: Schedule, semantic_end: float = math.inf, steps: int = STEPS
) -> Streams[Tensor]:
    """As `path_weights`, of any law: `steps` of each of its phases, the finer the nearer to its ends."""
    even = torch.linspace(-REACH, REACH, steps + 1, dtype=torch.float64).sigmoid()
    even = (even - even[0]) / (even[-1] - even[0])
    progress = torch.cat([phase.start + (phase.end - phase.start) * even for phase in schedule.phases])
    path = Streams(*(time.clamp(0, 1).logit() for time in schedule.times(progress)))
    return _weights(levels, path, semantic_end, CUBIC)


def _weights(levels: Tensor, path: Streams[Tensor], semantic_end: float, degree: int) -> Streams[Tensor]:
    """Weights of paths through logit times (..., steps), which wait at the lowest level and at their ends."""
    low, high = levels[0].item(), levels[-1].item()
    path = Streams(path.texture.clamp(low, high), path.semantic.clamp(low, min(high, semantic_end)))
    middle = Streams(*((place[..., 1:] + place[..., :-1]) / 2 for place in path))
    texture, semantic = (_interpolation(levels, place, degree) for place in middle)  # (..., steps, n)
    strengths = [place.sigmoid().square() * one.diff() for place, one in zip(middle, path, strict=True)]
    return Streams(*(texture.mT @ (strength[..., None] * semantic) for strength in strengths))


def least_on_lattice(levels: Tensor, errors: Streams[Tensor], semantic_end: float = math.inf, finer: int = 8) -> float:
    """The least J of all monotone paths along the lines of a grid `finer` than that of the levels.

    `errors` are means (n, n), interpolated as along any path.
    """
    levels = levels.double()
    places = torch.cat([torch.lerp(levels[:-1], levels[1:], part / finer) for part in range(finer)]).sort().values
    ends = Streams(levels[-1], levels[-1].clamp(max=semantic_end))
    texture, semantic = (torch.cat((places[places < end], end[None])) for end in ends)

    def edges(errors: Tensor, along: Tensor, across: Tensor) -> list[list[float]]:
        """J of every step along the first axis, by Simpson's rule, (along - 1, across)."""
        beside = _interpolation(levels, across, CUBIC)

        def integrand(places: Tensor) -> Tensor:
            error = _interpolation(levels, places, CUBIC) @ errors.double() @ beside.T
            return places.sigmoid().square()[:, None] * error

        here, halfway = integrand(along), integrand((along[1:] + along[:-1]) / 2)
        return ((here[1:] + 4 * halfway + here[:-1]) / 6 * along.diff()[:, None]).tolist()

    of_textures = edges(errors.texture, texture, semantic)
    of_semantics = edges(errors.semantic.T, semantic, texture)
    least = [[0.0] * len(semantic) for _ in texture]
    for i in range(len(texture)):
        for j in range(len(semantic)):
            ways = [least[i - 1][j] + of_textures[i - 1][j]] if i else []
            ways += [least[i][j - 1] + of_semantics[j - 1][i]] if j else []
            least[i][j] = min(ways, default=0.0)
    return least[-1][-1]


def _interpolation(levels: Tensor, places: Tensor, degree: int) -> Tensor:
    """What every level's value counts at `places` on a spline through all of them: (*places, n)."""
    spline = make_interp_spline(levels.double().numpy(), np.eye(len(levels)), degree, bc_type=ENDS[degree])
    return torch.from_numpy(spline(places.numpy()))


def _values(errors: Streams[Tensor], weights: Streams[Tensor]) -> Tensor:
    """J of every cluster (clusters,), and where weights are of several paths, of each: (clusters, paths)."""
    texture, semantic = (
        torch.tensordot(error.flatten(1), one.flatten(-2), dims=([1], [-1]))
        for error, one in zip(errors, weights, strict=True)
    )
    return texture + semantic

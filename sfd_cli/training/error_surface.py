"""A probe's errors on held-out images at pairs of noise levels, from which a schedule is learned."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sfd_cli.config import LearnSchedule
from sfd_cli.data.near_duplicates import hold_out, store_clusters
from sfd_cli.diffusion.kinetic_path import kinetic_curve
from sfd_cli.diffusion.latents import LatentSpace, Streams
from sfd_cli.diffusion.path_criterion import ErrorSurface, Preference, preferred
from sfd_cli.laws import DEFAULT_LAW
from sfd_cli.processes import Processes
from sfd_cli.progress import progress
from sfd_cli.training.validation import VelocityErrors
from sfd_cli.training.velocity_task import VelocityTask

Law = dict[str, Any]


class Measured(NamedTuple):
    """What was measured: the errors, and the mean squares of the predicted velocities, (n, n) a channel."""

    surface: ErrorSurface
    energies: Streams[Tensor]


def measure(section: LearnSchedule, task: VelocityTask, model: nn.Module, processes: Processes) -> Measured:
    """The probe's errors on what was kept out of its training, each image with noise of its own.

    Every pair of levels has the same noise, so that what differs between pairs is not the draw. The result is the
    same for any number of processes.

    Raises:
        SettingError: nothing is held out.
    """
    clusters = processes.broadcast(store_clusters(task.store) if processes.is_main else None)
    assert clusters is not None
    rows = hold_out(clusters, section.probe.holdout, section.probe.seed).held_out
    levels = torch.linspace(section.lowest, section.highest, section.levels)
    texture, semantic = torch.meshgrid(levels.sigmoid(), levels.sigmoid(), indexing="ij")
    times, errors = Streams(texture.flatten(), semantic.flatten()), VelocityErrors(task, section.probe)
    total = torch.zeros(len(rows), section.levels**2, 2, 2, dtype=torch.float64)
    seeds = progress(range(section.draws), "errors", unit="draw", silent=not processes.is_main)
    for seed in seeds:
        total += errors.at(model, rows, times, processes, seed)
    mean = (total / section.draws).unflatten(1, (section.levels, section.levels))
    of_streams = Streams(mean[..., 0, :], mean[..., 1, :])
    sums = Streams(*(mean[..., 0] * count for mean, count in zip(of_streams, _values(task.space), strict=True)))
    energies = Streams(*(stream[..., 1].mean(0) for stream in of_streams))
    return Measured(ErrorSurface(levels, sums, torch.from_numpy(clusters[rows])), energies)


def choose(section: LearnSchedule, measured: Measured, space: LatentSpace) -> tuple[Law, Preference]:
    """The law that the criterion chooses, as settings name it, and what the excess criterion says in any case."""
    found = preferred(measured.surface)
    if section.criterion == "kinetic":
        means = (error.mean(0) / count for error, count in zip(measured.surface.errors, _values(space), strict=True))
        levels, energies = measured.surface.levels, measured.energies
        lead, slope = kinetic_curve(levels, Streams(*means), energies, section.kinetic_weight)
        return {"schedule": "curve", "lead": round(lead, 3), "lead_slope": round(slope, 3)}, found
    if found.is_clear:
        return {"schedule": "curve", "lead": found.lead, "lead_slope": found.slope}, found
    return {"schedule": DEFAULT_LAW, "delta_t": 0.0}, found


def _values(space: LatentSpace) -> Streams[int]:
    """Numbers in each stream of an image."""
    return Streams(space.texture * space.grid**2, space.semantic * space.grid**2)

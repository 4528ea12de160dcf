"""A probe's errors on held-out images at pairs of noise levels, from which a schedule is learned."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sfd_cli.config import LearnSchedule
from sfd_cli.diffusion.kinetic_path import kinetic_curve
from sfd_cli.diffusion.latents import LatentSpace, Streams
from sfd_cli.diffusion.path_criterion import ErrorSurface, Preference, preferred
from sfd_cli.distributed.processes import Processes
from sfd_cli.laws import DEFAULT_LAW
from sfd_cli.progress import progress
from sfd_cli.training.probe_task import ProbeTask
from sfd_cli.training.validation import Examples, VelocityErrors

Law = dict[str, Any]


class Measured(NamedTuple):
    """What was measured.

    Attributes:
        surface: the probe's errors on what was kept out of its training.
        control: those on the same images beside strangers' semantics.
        trained_on: those on as many images that it was trained on.
        energies: mean squares of the predicted velocities, (n, n) a channel.
    """

    surface: ErrorSurface
    control: ErrorSurface
    trained_on: ErrorSurface
    energies: Streams[Tensor]


def measure(section: LearnSchedule, task: ProbeTask, model: nn.Module, processes: Processes) -> Measured:
    """The probe's errors on images kept out of its training and on as many that were not, each with its own noise.

    Every pair of levels has the same noise, and so has the control, so that what differs is not the draw. The result
    is the same for any number of processes.
    """
    levels = torch.linspace(section.lowest, section.highest, section.levels)
    texture, semantic = torch.meshgrid(levels.sigmoid(), levels.sigmoid(), indexing="ij")
    times = Streams(texture.flatten(), semantic.flatten())

    def mean_over_draws(rows: np.ndarray, examples: Examples, doing: str) -> Streams[Tensor]:
        """Of error and prediction, (images, n, n, 2) a stream."""
        errors, total = VelocityErrors(task, section.probe, examples), torch.zeros((), dtype=torch.float64)
        for seed in progress(range(section.draws), doing, unit="draw", silent=not processes.is_main):
            total = total + errors.at(model, rows, times, processes, seed)
        mean = (total / section.draws).unflatten(1, (section.levels, section.levels))
        return Streams(mean[..., 0, :], mean[..., 1, :])

    def surface(rows: np.ndarray, found: Streams[Tensor]) -> ErrorSurface:
        sums = Streams(*(one[..., 0] * count for one, count in zip(found, _values(task.space), strict=True)))
        return ErrorSurface(levels, sums, torch.from_numpy(task.clusters[rows]), section.highest_semantic)

    held_out, seen = task.held_out, task.trained_on
    own = mean_over_draws(held_out, task.examples, "errors")
    return Measured(
        surface(held_out, own),
        surface(held_out, mean_over_draws(held_out, task.control_examples, "errors of the control")),
        surface(seen, mean_over_draws(seen, task.examples, "errors on images trained on")),
        Streams(*(stream[..., 1].mean(0) for stream in own)),
    )


def choose(section: LearnSchedule, measured: Measured, space: LatentSpace) -> tuple[Law, Preference]:
    """The law that the criterion chooses, as settings name it, and what the excess criterion says in any case."""
    found = preferred(measured.surface, measured.control)
    if section.criterion == "kinetic":
        means = (error.mean(0) / count for error, count in zip(measured.surface.errors, _values(space), strict=True))
        levels, energies = measured.surface.levels, measured.energies
        lead, slope = kinetic_curve(levels, Streams(*means), energies, section.kinetic_weight)
        return {"schedule": "curve", "lead": round(lead, 3), "lead_slope": round(slope, 3)}, found
    if found.is_clear:
        return {"schedule": "lead", "lead": found.lead}, found
    return {"schedule": DEFAULT_LAW, "delta_t": 0.0}, found


def _values(space: LatentSpace) -> Streams[int]:
    """Numbers in each stream of an image."""
    return Streams(space.texture * space.grid**2, space.semantic * space.grid**2)

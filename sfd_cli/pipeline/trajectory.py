"""Samples made once more, observed on their way from noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfd_cli.artifacts.sample_folder import Samples
from sfd_cli.config import Sample, Settings, unsaid
from sfd_cli.devices import choose_device
from sfd_cli.diffusion.schedule import Schedule, schedule_of
from sfd_cli.errors import UserError
from sfd_cli.pipeline.inputs import SampleInputs
from sfd_cli.pipeline.models import SamplingModels


@dataclass(frozen=True)
class Trajectory:
    """Samples on their way from noise, at several points of the schedule.

    Attributes:
        progress: T of each point, ascending, from 0 to the schedule's end.
        textures: decoded images (points, samples, H, W, 3), uint8.
        semantics: semantic latents (points, samples, C_s, h, w); C_s may be 0.
        captions: class of each sample.
    """

    progress: list[float]
    textures: np.ndarray
    semantics: np.ndarray
    captions: list[str]


def follow_samples(settings: Settings, samples: Samples, indices: list[int]) -> tuple[Trajectory, Schedule]:
    """Sample the images `indices` again as they were sampled, keeping the latents at points of the schedule.

    The points are those of the solver nearest to `pick_progress`; an adaptive solver gives only the ends of phases.

    Raises:
        UserError: the images are not from `sfd sample`, or a model is missing.
    """
    sample = recorded_sample(settings.sample, samples)
    models = SamplingModels.open(settings.model_copy(update={"sample": sample}))
    sampler = models.load(sample, choose_device(settings.runtime.device))
    schedule = schedule_of(sampler.sample)
    inputs = SampleInputs(sample.seed, None, len(samples.labels), labels=np.asarray(samples.labels))
    points: dict[float, Tensor] = {}
    sampler.latents(inputs, indices, on_point=points.__setitem__)
    kept = nearest(list(points), pick_progress(schedule))
    textures = [sampler.decode(points[progress]) for progress in kept]
    semantics = [sampler.space.views(points[progress]).semantic for progress in kept]
    captions = [sampler.conditions.name(samples.labels[index]) for index in indices]
    return Trajectory(kept, _array(textures).transpose(0, 1, 3, 4, 2), _array(semantics), captions), schedule


def recorded_sample(section: Sample, samples: Samples) -> Sample:
    """The settings that made the samples: those recorded beside them, over today's `section`.

    Raises:
        UserError: none are recorded, or not all of what made them.
    """
    if not samples.settings:
        raise UserError(samples.description, "holds no images of `sfd sample`", "their way from noise is not known")
    if samples.given_noise:
        raise UserError(samples.description, "was sampled from a file of noise", "sample from the seed")
    if samples.edits:
        problem = f"was sampled with {', '.join(samples.edits)}, and not from noise and class alone"
        raise UserError(samples.description, problem, "sample without")
    said = unsaid(section) | samples.settings
    recorded = {key: value for key, value in said.items() if key in Sample.model_fields}
    if "interval" in samples.settings:
        recorded["interval_start"], recorded["interval_end"] = samples.settings["interval"]
    return Sample.model_validate(section.model_dump() | recorded)


def pick_progress(schedule: Schedule) -> list[float]:
    """Points worth showing: the ends of each phase, and two inside it."""
    points = [0.0]
    for phase in schedule.phases:
        length = phase.end - phase.start
        points += [phase.start + length / 3, phase.start + 2 * length / 3, phase.end]
    return points


def nearest(points: list[float], wanted: list[float]) -> list[float]:
    """Of ascending `points`, the nearest to each of `wanted`, each once."""
    found = [min(points, key=lambda point: abs(point - target)) for target in wanted]
    return list(dict.fromkeys(found))


def _array(tensors: list[Tensor]) -> np.ndarray:
    return torch.stack(tensors).cpu().numpy()

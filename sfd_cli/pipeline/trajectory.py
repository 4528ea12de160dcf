"""Samples made once more, watched on their way from noise."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sfd_cli.artifacts.sampled import Sampled
from sfd_cli.config import Sample, Settings
from sfd_cli.device import choose_device
from sfd_cli.diffusion.schedule import Schedule, schedule_of
from sfd_cli.errors import UserError
from sfd_cli.pipeline.inputs import SampleInputs
from sfd_cli.pipeline.sampler import Sampler, decode_textures
from sfd_cli.report.pictures import Trajectory, pick_progress


def follow_samples(settings: Settings, samples: Sampled, indices: list[int]) -> tuple[Trajectory, Schedule]:
    """Sample the images `indices` again as they were sampled, keeping the latents at points of the schedule.

    The points are those of the solver nearest to `pick_progress`; dopri5 tells only where phases end.

    Raises:
        UserError: the images are not `sfd sample`'s, or a model is missing.
    """
    sample = recorded_sample(settings.sample, samples)
    device = choose_device(settings.runtime.device)
    sampler = Sampler.load(settings.model_copy(update={"sample": sample}), device)
    config, schedule = sampler.flow.dit.config, schedule_of(sample)
    inputs = SampleInputs(sample.seed, None, len(samples.labels), labels=np.asarray(samples.labels))
    points: dict[float, Tensor] = {}
    sampler.flow.latents(inputs, indices, on_point=points.__setitem__)
    kept = nearest(list(points), pick_progress(schedule))
    textures = [decode_textures(sampler.texture_vae, points[progress], sampler.statistics) for progress in kept]
    first_semantic = config.in_channels - config.semantic_channels
    semantics = [points[progress][:, first_semantic:] for progress in kept]
    captions = [sampler.class_names[samples.labels[index]] for index in indices]
    return Trajectory(kept, _array(textures).transpose(0, 1, 3, 4, 2), _array(semantics), captions), schedule


def recorded_sample(section: Sample, samples: Sampled) -> Sample:
    """The settings that made the samples: those recorded beside them, over today's `section`.

    Raises:
        UserError: none are recorded, or not all of what made them.
    """
    if not samples.settings:
        raise UserError(f"the images in {samples.description} are not from `sfd sample`, so their way cannot be shown")
    if samples.given_noise:
        raise UserError(f"{samples.description} was sampled from given noise, so its way cannot be shown from the seed")
    recorded = {key: value for key, value in samples.settings.items() if key in Sample.model_fields}
    if "interval" in samples.settings:
        recorded["interval_start"], recorded["interval_end"] = samples.settings["interval"]
    return Sample.model_validate(section.model_dump() | recorded)


def nearest(points: list[float], wanted: list[float]) -> list[float]:
    """Of ascending `points`, the nearest to each of `wanted`, each once."""
    found = [min(points, key=lambda point: abs(point - target)) for target in wanted]
    return list(dict.fromkeys(found))


def _array(tensors: list[Tensor]) -> np.ndarray:
    return torch.stack(tensors).cpu().numpy()

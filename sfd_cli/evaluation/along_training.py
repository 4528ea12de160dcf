"""The models that a training passed through: its milestones and what it ended with, and the images that they sample."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from sfd_cli.artifacts.fingerprints import finished
from sfd_cli.artifacts.milestones import Milestones
from sfd_cli.artifacts.recipe import Record
from sfd_cli.artifacts.sample_folder import choose
from sfd_cli.config import Sample, Settings
from sfd_cli.devices import choose_device
from sfd_cli.distributed.processes import Processes, require_memory
from sfd_cli.errors import SettingError, UserError
from sfd_cli.evaluation.sampled_images import SampledImages
from sfd_cli.messages import say
from sfd_cli.pipeline.inputs import SampleInputs
from sfd_cli.pipeline.models import SamplingModels
from sfd_cli.pipeline.sampler import Sampler
from sfd_cli.pipeline.speed import settled


class AlongTraining:
    """The models at `paths.dit` by the steps that they had taken, and how the settings sample them.

    Attributes:
        fingerprints: of the transformers, by step, ascending.
        others: fingerprints of the texture VAE and the guide, which are the same for all, by role.
        seeds: of the repeats: `sample.seed` and those after it.

    Raises:
        UserError: there are no milestones, or a model is missing or damaged.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        for key in settings.sample.edits:
            raise UserError(f"sample.{key}", "is of pictures that have no scores along a training", "leave it out")
        places = model_folders(settings.paths.dit)
        self._models = {step: SamplingModels.open(_with_transformer(settings, path)) for step, path in places.items()}
        found = {step: models.fingerprints() for step, models in self._models.items()}
        self.fingerprints = {step: one["dit"] for step, one in found.items()}
        self.others = {role: key for role, key in found[max(found)].items() if role != "dit"}
        self.seeds = range(settings.sample.seed, settings.sample.seed + settings.curve.repeats)
        self._loaded: tuple[int, Sampler] | None = None

    @property
    def sample(self) -> Sample:
        """The settings of sampling, with the law of training where they leave it open."""
        sample = self._settings.sample.with_law(self._last.trained_law)
        return settled(sample, choose_device(self._settings.runtime.device))

    @property
    def image_size(self) -> int:
        """Side of the images, pixels.

        Raises:
            UserError: the model does not tell.
        """
        side = self._last.dit.facts.get("image_size")
        if not isinstance(side, int):
            raise UserError(self._last.dit.source, "does not say how large its images are", "train it again")
        return side

    def check(self, processes: Processes) -> torch.device:
        """The device of this process, once the first models are known to fit together and to the settings.

        Raises:
            UserError: they do not.
        """
        device, sample = processes.device(self._settings.runtime.device), self._settings.sample
        try:
            require_memory(sample.batch_size, self._last.dit.config.space.shape, device)
        except SettingError as error:
            raise UserError(f"sample.{error.subject}", error.problem, error.remedy) from None
        sampler = self._sampler(min(self._models), device)
        SampleInputs.open(sample).require_fit(sampler.space, sampler.conditions)
        if len(self._indices()) < 2:
            raise UserError("sample.num_images", "one image has no score", "sample more")
        return device

    def images(self, step: int, seed: int, device: torch.device) -> SampledImages:
        """Those that `sfd sample` would give of a model and a seed, and `sfd fid` would score."""
        sampler = self._sampler(step, device)
        seeded = replace(sampler, sample=sampler.sample.model_copy(update={"seed": seed}))
        return SampledImages(seeded, SampleInputs.open(seeded.sample), self._indices())

    @property
    def _last(self) -> SamplingModels:
        return self._models[max(self._models)]

    def _indices(self) -> list[int]:
        options = self._settings.fid
        return choose(self._settings.sample.num_images, options.num_images, options.seed)

    def _sampler(self, step: int, device: torch.device) -> Sampler:
        """Of one model at a time, with which all its repeats are sampled."""
        if self._loaded is None or self._loaded[0] != step:
            self._loaded = None  # before the next one takes its memory
            self._loaded = step, self._models[step].load(self._settings.sample, device)
        return self._loaded[1]


def model_folders(folder: Path) -> dict[int, Path]:
    """The folders of a training's milestones and, once it is finished, of its model, by their steps, ascending.

    Raises:
        UserError: there is no training, or it keeps no milestones.
    """
    record, milestones = Record.read(folder), Milestones(folder)
    if record is None:
        record = finished(folder, "sfd train")
    found = {step: milestones.path(step) for step in milestones.steps()}
    if not found:
        raise UserError(folder, "has no milestones", "train it with dit.keep_every, the steps between them")
    if record.complete:
        found[int(record.facts["steps"])] = folder
    else:
        say(f"{folder} is still in training: the curve ends with the milestone of step {max(found)}")
    return dict(sorted(found.items()))


def _with_transformer(settings: Settings, folder: Path) -> Settings:
    return settings.model_copy(update={"paths": settings.paths.model_copy(update={"dit": folder})})

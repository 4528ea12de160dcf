"""Sample grids during training: the same noise and classes again and again, to watch the model improve."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from sfd_cli.config import DiT, Sample, Settings
from sfd_cli.laws import law_of
from sfd_cli.networks.lightning_dit import LightningDiT
from sfd_cli.pipeline.sampler import Sampler
from sfd_cli.pipeline.seeds import balanced_labels, initial_noise
from sfd_cli.report.pictures import draw_samples
from sfd_cli.training.velocity_task import VelocityTask
from sfd_cli.weights.models import open_texture_vae

GRID_IMAGES, GRID_STEPS = 36, 20


def has_grid(step: int, section: DiT) -> bool:
    """Whether a grid is drawn after so many steps."""
    return bool(section.sample_every) and (step % section.sample_every == 0 or step == section.steps)


class SampleGrids:
    """Draws the same noise and classes as PNGs in `folder` every `sample_every` steps, without guidance."""

    def __init__(self, settings: Settings, section: DiT, task: VelocityTask, folder: Path) -> None:
        self._section, self._space, self._conditions, self._folder = section, task.space, task.conditions, folder
        self._sample = Sample(steps=GRID_STEPS, guidance="none").with_law(law_of(section))
        self._texture_vae = open_texture_vae(settings, task.space.texture).load().to(task.device)
        indices = range(GRID_IMAGES)
        self._noise = initial_noise(section.seed, indices, task.space.shape).to(task.device)
        self._labels = balanced_labels(indices, range(len(task.conditions))).to(task.device)
        self._captions = [task.conditions.names[label] for label in self._labels.tolist()]

    def forget_after(self, step: int) -> None:
        """Remove the pictures of steps that are about to be done again; all where `step` is 0."""
        for path in self._folder.glob("step-*.png"):
            if int(path.stem.removeprefix("step-")) > step:
                path.unlink()

    def __call__(self, step: int, model: nn.Module) -> None:
        """Draw the grid if it is due after `step` steps."""
        if not has_grid(step, self._section):
            return
        assert isinstance(model, LightningDiT)
        sampler = Sampler(model, self._sample, self._space, self._conditions, texture_vae=self._texture_vae)
        images = sampler.decode(sampler.solve(self._noise, self._labels)).permute(0, 2, 3, 1).cpu().numpy()
        draw_samples(self._folder / f"step-{step:07d}.png", list(images), self._captions)

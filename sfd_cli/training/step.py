"""One training step, from the draws to the averaged weights, in one function.

Everything random follows from the seed and the step, and belongs to the global batch: a resumed run, and a run with
another number of processes or micro-batches, sees the same images and the same noise.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sfd_cli.distributed.processes import Processes
from sfd_cli.networks.compilation import compile_network
from sfd_cli.networks.precision import autocast
from sfd_cli.training.averages import EMA
from sfd_cli.training.optimizers import optimizers_of, take_step
from sfd_cli.training.running_means import RunningMeans
from sfd_cli.training.settings import LoopSettings, rate_factor
from sfd_cli.training.sharding import owners


class Task(Protocol):
    """What is trained for. `losses` draws nothing itself, so that a resume is exact."""

    def fetch(self, indices: np.ndarray, flips: np.ndarray) -> dict[str, Tensor]:
        """CPU tensors of the images at `indices`, batch first. Runs in a thread, ahead of its use."""

    def draw(self, generator: torch.Generator, count: int) -> dict[str, Tensor]:
        """All randomness of a global batch of `count` images, batch first, on the generator's device."""

    def losses(self, model: nn.Module, batch: dict[str, Tensor], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalar means over the batch; "loss" is minimised, all are logged."""


class TrainingStep:
    """What changes in training, and the step that changes it: `step(batch)` is the next one.

    Attributes:
        number: steps done; the next one draws and takes its learning rate by it.
        share: this process's rows of every global batch.
        model: the trained module.
        network: the module that is called: the model, through DDP where there are several processes.
        ema: its average, None where none is kept.
        optimizers: AdamW, and Muon where the settings ask for it.
        means: of the losses and the gradient's norm since they were last read.

    Raises:
        SettingError: the batch cannot be split evenly.
    """

    def __init__(
        self, task: Task, model: nn.Module, settings: LoopSettings, processes: Processes, device: torch.device
    ) -> None:
        self.task, self.settings, self.processes, self.device = task, settings, processes, device
        self.number = 0
        self.micro = settings.micro_batch(processes.count)
        rows = self.micro * settings.accumulate
        self.share = slice(processes.rank * rows, (processes.rank + 1) * rows)
        self.model = model.to(device).train()
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizers = optimizers_of(self.model, settings, processes)
        self.ema = None
        if settings.ema_decay is not None:
            whose = owners(self.parameters, self.optimizers, processes)
            self.ema = EMA(self.model, settings.ema_decay, settings.ema_warmup, whose, processes)
        self.generator = torch.Generator(device)
        self.means = RunningMeans(device, processes)
        if settings.compile:
            compile_network(self.model, device)  # LightningDiT and the Semantic VAE compile their blocks one by one
        self.network = processes.wrap(self.model)

    def __call__(self, batch: dict[str, Tensor]) -> None:
        """Take a step on this process's rows of the next global batch, as `Task.fetch` gives them.

        Where the loss or the gradient is not finite, weights and optimiser stay as they are and the means count a
        skipped step. Nothing here waits for the device, but for Muon.
        """
        settings, totals = self.settings, dict[str, Tensor]()

        # Draw for the global batch, of which this process uses its share.
        self.generator.manual_seed(seed_of_step(settings.seed, self.number))
        draws = self.task.draw(self.generator, settings.batch_size)

        # Accumulate gradients over the micro-batches; the last one averages them over the processes.
        for micro in range(settings.accumulate):
            rows = slice(micro * self.micro, (micro + 1) * self.micro)
            here = {name: tensor[rows].to(self.device, non_blocking=True) for name, tensor in batch.items()}
            drawn = {name: tensor[self.share][rows] for name, tensor in draws.items()}
            is_last = micro == settings.accumulate - 1
            with nullcontext() if is_last else self.processes.without_sync(self.network):
                with autocast(settings.precision, self.device):
                    losses = self.task.losses(self.network, here, drawn)
                # A loss that is not finite makes the whole gradient NaN: its norm, summed by DDP, tells every process.
                seed = torch.where(losses["loss"].detach().isfinite(), 1 / settings.accumulate, torch.nan)
                losses["loss"].backward(seed.to(losses["loss"].dtype))
            for name, value in losses.items():
                totals[name] = totals.get(name, 0) + value.detach() / settings.accumulate

        # Clip.
        norm = nn.utils.get_total_norm([weight.grad for weight in self.parameters if weight.grad is not None])
        if settings.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, settings.clip_norm, norm)
        skipped = ~norm.isfinite()

        # Update the weights, their average and the means.
        take_step(self.optimizers, rate_factor(settings, self.number), skipped)
        if self.ema is not None:
            self.ema.update(self.model, self.number)
        self.means.add(totals | {"gradient_norm": norm}, skipped)
        self.number += 1

    @property
    def average(self) -> nn.Module | None:
        """The averaged module, where one is kept; see `EMA` for where it is whole."""
        return self.ema.model if self.ema else None

    def gather_average(self) -> None:
        """Have the whole average in every process, where one is kept."""
        if self.ema is not None:
            self.ema.gather()

    def release_average(self) -> None:
        """Keep only what this process averages."""
        if self.ema is not None:
            self.ema.release()


def seed_of_step(seed: int, step: int) -> int:
    """A 64-bit seed for the draws of one step, unlike that of any other step or seed."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0])

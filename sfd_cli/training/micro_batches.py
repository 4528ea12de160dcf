"""How many micro-batches a step needs: as few as fit into the device's memory, by trial before the first step.

A step's result does not depend on their number but for rounding, so a resumed run may take another one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sfd_cli.data.order import EpochSampler
from sfd_cli.devices import kind_of
from sfd_cli.distributed.processes import Processes
from sfd_cli.memory import is_out_of_memory
from sfd_cli.networks.precision import autocast
from sfd_cli.training.settings import LoopSettings
from sfd_cli.training.step import Task, seed_of_step

MARGIN = 0.08
"""Share of a device's memory that a trial leaves free: libraries' workspaces, pictures in between, what lies in pieces.

Assumed, not measured."""


def with_micro_batches(
    task: Task,
    model: nn.Module,
    sampler: EpochSampler,
    settings: LoopSettings,
    processes: Processes,
    device: torch.device,
) -> LoopSettings:
    """The settings with the fewest micro-batches that fit, where they are to be found (`LoopSettings.granule`).

    Every process calls this alike and tries on its own device; the largest number that one of them needs holds for all.
    Where not even the smallest micro-batch fits it is tried in earnest, and the error says what to change. On a CPU,
    and on devices that do not tell how much memory they have, `accumulate` stays as it is.

    Args:
        task: what is trained for.
        model: moved to the device; its weights stay as they are, and it has no gradients afterwards.
        sampler: of the images.
        settings: how to train.
        processes: that share a step.
        device: this process's own.

    Raises:
        SettingError: the batch cannot be split evenly.
    """
    here = settings.micro_batch(processes.count) * settings.accumulate
    if settings.granule is None or kind_of(device).peak_memory(device) is None:
        return settings
    trial = _Trial.of(task, model.to(device).train(), sampler, settings, processes, device)
    counts = micro_batch_counts(here, settings.granule)
    fits = (count for count in counts if not processes.any(not trial.fits(here // count)))
    return replace(settings, accumulate=next(fits, counts[-1]))


def micro_batch_counts(images: int, granule: int) -> list[int]:
    """Into how many micro-batches of equal size so many images can be cut, ascending, each of whole granules."""
    return [count for count in range(1, images + 1) if images % count == 0 and images // count % granule == 0] or [1]


@dataclass(frozen=True)
class _Trial:
    """A forward and a backward pass on the first images, beside as much memory as the rest of a step will hold.

    Attributes:
        task: what is trained for.
        model: on the device.
        batch: of the images of a step, on the CPU.
        draws: of a whole step.
        settings: how to train.
        device: to try on.
        held: bytes that are taken beside weights, gradients and what the passes keep.
    """

    task: Task
    model: nn.Module
    batch: dict[str, Tensor]
    draws: dict[str, Tensor]
    settings: LoopSettings
    device: torch.device
    held: int

    @classmethod
    def of(
        cls,
        task: Task,
        model: nn.Module,
        sampler: EpochSampler,
        settings: LoopSettings,
        processes: Processes,
        device: torch.device,
    ) -> _Trial:
        indices, flips = sampler.batch(0)
        here = len(indices) // processes.count
        generator = torch.Generator(device).manual_seed(seed_of_step(settings.seed, 0))
        draws = task.draw(generator, settings.batch_size)
        held = held_beside(model, settings, processes) + int(MARGIN * kind_of(device).memory(device))
        return cls(task, model, task.fetch(indices[:here], flips[:here]), draws, settings, device, held)

    def fits(self, images: int) -> bool:
        """Whether there is memory for a micro-batch of so many images."""
        fits = True
        try:
            self._passes(images)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            fits = False  # what the passes hold is let go with the error, after this block
        self.model.zero_grad(set_to_none=True)
        kind_of(self.device).release(self.device)
        return fits

    def _passes(self, images: int) -> None:
        _ballast = torch.empty(self.held, dtype=torch.uint8, device=self.device)
        here = {name: tensor[:images].to(self.device) for name, tensor in self.batch.items()}
        drawn = {name: tensor[:images] for name, tensor in self.draws.items()}
        with autocast(self.settings.precision, self.device):
            losses = self.task.losses(self.model, here, drawn)
        losses["loss"].backward()


def held_beside(model: nn.Module, settings: LoopSettings, processes: Processes) -> int:
    """Bytes at most that training holds beside weights, gradients and activations.

    The optimiser's two moments, the average, and a second copy of the gradients on their way between processes. What
    is spread over the processes is less on each.
    """
    trained = sum(weight.nbytes for weight in model.parameters() if weight.requires_grad)
    average = 0 if settings.ema_decay is None else sum(value.nbytes for value in model.state_dict().values())
    return (2 + (processes.count > 1)) * trained + average

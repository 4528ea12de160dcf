"""The training loop that every trainer runs on: exact resume, any number of processes, no wait for the device per step.

Everything random follows from the seed and the step, and belongs to the global batch: a resumed run, and a run with
another number of processes or micro-batches, sees the same images and the same noise.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from sfd_cli.data.order import EpochSampler
from sfd_cli.data.prefetch import prefetched
from sfd_cli.errors import StageFailure, UserError
from sfd_cli.networks.precision import Precision, autocast
from sfd_cli.processes import Processes
from sfd_cli.training.averages import EMA
from sfd_cli.training.checkpoints import Checkpoints, TrainingState
from sfd_cli.training.interrupt import raise_for, stop_requests
from sfd_cli.training.live_log import LiveLog
from sfd_cli.training.optimisation import Optimisation
from sfd_cli.training.running_means import Reading, RunningMeans
from sfd_cli.training.throughput import Throughput, peak_flops

FETCHED_AHEAD = 3
BAD_STEPS_IN_A_ROW = 10

M = TypeVar("M", bound=nn.Module)
OnStep = Callable[[int, nn.Module], None]
"""Told the steps done and the averaged module (the trained one where none is kept), in the first process only."""


class Task(Protocol):
    """What is trained. A function of its inputs: `losses` draws nothing itself, and a resume is exact."""

    def fetch(self, indices: np.ndarray, flips: np.ndarray) -> dict[str, Tensor]:
        """CPU tensors of the images at `indices`, batch first. Runs in a thread, ahead of its use."""

    def draw(self, generator: torch.Generator, count: int) -> dict[str, Tensor]:
        """All randomness of one global batch of `count` images, batch first, on the generator's device."""

    def losses(self, model: nn.Module, batch: dict[str, Tensor], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalar means over the images given; "loss" is minimised, all are logged."""


@dataclass(frozen=True)
class LoopSettings:
    """How to optimise; see the section `dit` of params.yaml for the units."""

    steps: int
    batch_size: int
    learning_rate: float
    checkpoint_every: int
    log_every: int
    seed: int
    accumulate: int = 1
    beta2: float = 0.999
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay: Literal["constant", "cosine"] = "constant"
    clip_norm: float | None = None
    ema_decay: float | None = None
    precision: Precision = "fp32"
    compile: bool = False


@dataclass(frozen=True)
class LoopResult(Generic[M]):
    """A finished run.

    Attributes:
        step: optimiser steps done.
        model: the trained module, on the training device.
        ema: the averaged module, None where none is kept.
        seconds: spent in this call.
    """

    step: int
    model: M
    ema: M | None
    seconds: float


def learning_rate(settings: LoopSettings, step: int) -> float:
    """Learning rate of step `step`, counted from 0: linear warmup, then constant or half a cosine down to 0."""
    warmup = min((step + 1) / settings.warmup_steps, 1.0) if settings.warmup_steps else 1.0
    if settings.decay == "constant":
        return settings.learning_rate * warmup
    progress = max(step - settings.warmup_steps, 0) / max(settings.steps - settings.warmup_steps, 1)
    return settings.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * progress))


def train(
    task: Task,
    model: M,
    sampler: EpochSampler,
    settings: LoopSettings,
    checkpoints: Path,
    log: Path,
    device: torch.device,
    description: str,
    on_step: OnStep | None = None,
    flops_per_image: int | None = None,
) -> LoopResult[M]:
    """Train until `settings.steps` steps are done, from the last checkpoint where there is one.

    Under torchrun all processes call this alike. SIGTERM and SIGINT write a checkpoint and end the program.

    Args:
        task: what to train for.
        model: on any device; trained in place.
        sampler: order of the images; its batch size is the settings'.
        settings: how to train.
        checkpoints: folder of this run's checkpoints.
        log: folder for dvclive.
        device: to train on; of several processes each takes its own GPU.
        description: said beside the progress bar and in errors.
        on_step: called after every step in the first process.
        flops_per_image: of one forward and backward pass, for the utilisation (MFU) in the log.

    Raises:
        UserError: the batch cannot be split evenly, or the checkpoint is past `steps` already.
        StageFailure: the loss was not finite for ten steps in a row; the last good checkpoint is there.
    """
    processes = Processes.join()
    parts = processes.count * settings.accumulate
    if settings.batch_size % parts:
        raise UserError(
            f"batch_size: {settings.batch_size} cannot be split evenly over {processes.count} processes of"
            f" {settings.accumulate} micro-batches; make it a multiple of {parts}"
        )
    started = time.monotonic()
    run = _Run(task, model, sampler, settings, processes, device, description)
    store = Checkpoints(checkpoints)
    run.resume(store)
    if run.step < settings.steps:
        live = LiveLog(log, run.step) if processes.is_main else None
        peak = peak_flops(run.device, settings.precision)
        run.go(store, live, Throughput(flops_per_image, peak and peak * processes.count), on_step)
    return LoopResult(run.step, model, cast(M | None, run.average), time.monotonic() - started)


class _Run:
    """The objects of one call of `train`, and the step it is at."""

    def __init__(
        self,
        task: Task,
        model: nn.Module,
        sampler: EpochSampler,
        settings: LoopSettings,
        processes: Processes,
        device: torch.device,
        description: str,
    ) -> None:
        self.task, self.sampler, self.settings = task, sampler, settings
        self.processes, self.description = processes, description
        self.device = processes.device(device)
        self.step = 0
        self.model = model.to(self.device).train()
        self.ema = None if settings.ema_decay is None else EMA(self.model, settings.ema_decay)
        self.optimisation = Optimisation(self.model, settings.beta2, settings.weight_decay, settings.clip_norm)
        self.generator = torch.Generator(self.device)
        self.tally = RunningMeans(self.device, processes)
        # Rank r has rows [r, r + 1) * share of every global batch, in micro-batches one after the other.
        self.share = settings.batch_size // processes.count
        self.micro = self.share // settings.accumulate

    @property
    def average(self) -> nn.Module | None:
        """The averaged module, where one is kept."""
        return self.ema.model if self.ema else None

    def resume(self, checkpoints: Checkpoints) -> None:
        """Take up the last good checkpoint, the same one in every process."""
        state = checkpoints.load_last() if self.processes.is_main else None
        step = self.processes.broadcast(state.step if state else 0)
        if step > self.settings.steps:
            raise UserError(
                f"{checkpoints.folder} is at step {step} already, past the {self.settings.steps} asked for; ask for"
                f" at least {step} steps, or move {checkpoints.folder.parent} away to start over"
            )
        if step:
            state = state or checkpoints.load(step)
            state.restore(self.model, self.average, self.optimisation.optimizer)
            self.step = step

    def go(self, checkpoints: Checkpoints, live: LiveLog | None, speed: Throughput, on_step: OnStep | None) -> None:
        """All remaining steps."""
        settings, first, read_at = self.settings, self.processes.is_main, self.step
        if settings.compile:
            self.model.compile()  # a module that knows better compiles its parts
        network = self.processes.wrap(self.model)
        bar = tqdm(
            desc=self.description, total=settings.steps, initial=self.step, unit="step", disable=None if first else True
        )
        with stop_requests() as requested, bar, closing(prefetched(self._batches(), FETCHED_AHEAD)) as batches:
            for batch in batches:
                self._take_step(network, batch)
                self.step += 1
                bar.update()
                stop = self.processes.any(bool(requested()))
                due = stop or self.step % settings.checkpoint_every == 0 or self.step == settings.steps
                if due or self.step % settings.log_every == 0:
                    reading = self._read(checkpoints)
                    self._show(reading, speed.read((self.step - read_at) * settings.batch_size), live, bar)
                    read_at = self.step
                with speed.paused():
                    if due and first:
                        checkpoints.save(
                            TrainingState.of(self.step, self.model, self.average, self.optimisation.optimizer)
                        )
                    if on_step is not None and first:
                        on_step(self.step, self.model if self.average is None else self.average)
                if stop:
                    self.processes.barrier()
                    raise_for(requested() or signal.SIGTERM)
        self.processes.barrier()

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        """This process's rows of the remaining global batches, in memory that a GPU can copy from by itself."""
        rows = slice(self.processes.rank * self.share, (self.processes.rank + 1) * self.share)
        for step in range(self.step, self.settings.steps):
            indices, flips = self.sampler.batch(step)
            batch = self.task.fetch(indices[rows], flips[rows])
            if self.device.type == "cuda":
                batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
            yield batch

    def _take_step(self, network: nn.Module, batch: dict[str, Tensor]) -> None:
        settings = self.settings
        self.generator.manual_seed(seed_of_step(settings.seed, self.step))
        draws = self.task.draw(self.generator, settings.batch_size)
        totals: dict[str, Tensor] = {}
        for number in range(settings.accumulate):
            rows = slice(number * self.micro, (number + 1) * self.micro)
            own = slice(self.processes.rank * self.share + rows.start, self.processes.rank * self.share + rows.stop)
            here = {name: tensor[rows].to(self.device, non_blocking=True) for name, tensor in batch.items()}
            drawn = {name: tensor[own] for name, tensor in draws.items()}
            last = number == settings.accumulate - 1
            with nullcontext() if last else self.processes.without_sync(network):
                with autocast(settings.precision, self.device):
                    losses = self.task.losses(network, here, drawn)
                self.optimisation.backward(losses["loss"], 1 / settings.accumulate)
            for name, value in losses.items():
                totals[name] = totals.get(name, 0) + value.detach() / settings.accumulate
        norm, skipped = self.optimisation.step(learning_rate(settings, self.step))
        if self.ema is not None:
            self.ema.update(self.model)
        self.tally.add(totals | {"gradient_norm": norm}, skipped)

    def _read(self, checkpoints: Checkpoints) -> Reading:
        reading = self.tally.read()
        if reading.longest >= BAD_STEPS_IN_A_ROW:
            steps = checkpoints.steps()
            kept = f"the last good checkpoint is {checkpoints.path(steps[-1])}" if steps else "there is no checkpoint"
            raise StageFailure(
                f"{self.description}: the loss or its gradient was not finite in {reading.longest} steps in a row"
                f" before step {self.step}; {kept}; a lower learning rate, clipping or fp32 may help"
            )
        return reading

    def _show(self, reading: Reading, speed: dict[str, float], live: LiveLog | None, bar: tqdm) -> None:
        if live is None:
            return
        if reading.skipped:
            message = f"sfd: {self.description}: skipped {reading.skipped} of the steps before {self.step}, not finite"
            bar.write(message, file=sys.stderr)
        rate = {"learning_rate": learning_rate(self.settings, self.step - 1)}
        live.log(self.step, reading.means | rate | speed)
        if reading.means:
            bar.set_postfix(loss=f"{reading.means['loss']:.4g}", refresh=False)


def seed_of_step(seed: int, step: int) -> int:
    """A 64-bit seed for the draws of one step, unlike that of any other step or seed."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0])

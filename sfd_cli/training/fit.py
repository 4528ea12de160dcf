"""Training from the last checkpoint to the last step: batches ahead of their use, checkpoints, log and signals."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from sfd_cli.artifacts.timings import speed_folder
from sfd_cli.data.order import EpochSampler
from sfd_cli.data.prefetch import prefetched
from sfd_cli.devices import kind_of
from sfd_cli.distributed.processes import Processes
from sfd_cli.errors import StageFailure, UserError
from sfd_cli.messages import say
from sfd_cli.progress import progress
from sfd_cli.training.checkpoint_writer import CheckpointWriter
from sfd_cli.training.checkpoints import Checkpoints, TrainingState
from sfd_cli.training.interrupt import raise_for, stop_requests
from sfd_cli.training.live_log import LiveLog
from sfd_cli.training.micro_batches import with_micro_batches
from sfd_cli.training.settings import LoopSettings, learning_rate
from sfd_cli.training.sharding import collected
from sfd_cli.training.step import Task, TrainingStep
from sfd_cli.training.throughput import Throughput, memory, peak_flops

FETCHED_AHEAD = 3
BAD_STEPS_IN_A_ROW = 10

M = TypeVar("M", bound=nn.Module)
Validate = Callable[[nn.Module], dict[str, float]]
"""Called with the averaged module (the trained one where none is kept), in every process; gives what is to be logged.

It must not draw from the global random generators."""
OnStep = Callable[[int, nn.Module], None]
"""Called with the steps done and the averaged module (the trained one where none is kept), in rank 0 only.

It comes before the checkpoint, so that what goes on from one has what was made up to there."""
Looks = Callable[[int], bool]
"""Whether what is called after a step looks at the averaged module; the same in every process."""


@dataclass(frozen=True)
class LoopResult(Generic[M]):
    """The steps done, the trained module on the training device, and the averaged one, None where none is kept."""

    step: int
    model: M
    ema: M | None


def fit(
    task: Task,
    model: M,
    sampler: EpochSampler,
    settings: LoopSettings,
    checkpoints: Path,
    log: Path,
    device: torch.device,
    description: str,
    on_step: Sequence[OnStep] = (),
    flops_per_image: int | None = None,
    validate: Validate | None = None,
    looks: Looks = lambda step: True,
) -> LoopResult[M]:
    """Train until `settings.steps` steps are done, from the last checkpoint where there is one.

    Under torchrun all processes call this alike. SIGTERM and SIGINT write a checkpoint and end the program.

    Args:
        task: what to train for.
        model: on any device; trained in place.
        sampler: order of the images; its batch size is the settings'.
        settings: how to train.
        checkpoints: folder of this run's checkpoints.
        log: folder for dvclive; what depends on the clock goes to its `speed_folder`.
        device: this process's own.
        description: shown beside the progress bar and in errors.
        on_step: what is called after every step in rank 0.
        flops_per_image: of one forward and backward pass, for the utilisation (MFU) in the log.
        validate: called at planned checkpoints, before they are written: what goes on from one has its row in the log.
        looks: at which steps `on_step` looks at the averages, which several processes have to gather for it.

    Raises:
        SettingError: the batch cannot be split evenly.
        UserError: the checkpoint is past `steps` already.
        StageFailure: the loss was not finite for ten steps in a row; the last good checkpoint is there.
    """
    processes = Processes.join()
    settings = with_micro_batches(task, model, sampler, settings, processes, device)
    step = TrainingStep(task, model, settings, processes, device)
    store = Checkpoints(checkpoints)
    _resume(step, store)
    if step.number < settings.steps:
        if processes.is_main:
            say(f"{description}: steps {step.number + 1:,} to {settings.steps:,}, {_batch(settings, processes.count)}")
        peak = peak_flops(device, settings.precision)
        speed = Throughput(flops_per_image, peak and peak * processes.count)
        live = _Logs.of(log, step.number) if processes.is_main else None
        _take_steps(step, sampler, store, _Progress(step, description, live, speed, store), on_step, validate, looks)
        step.gather_average()
    return LoopResult(step.number, model, cast(M | None, step.average))


def _batch(settings: LoopSettings, processes: int) -> str:
    """How the images of a step are shared: `batch 256 = 8 processes x 32`, or `batch 64`."""
    parts = [f"{processes} processes"] * (processes > 1) + [f"{settings.accumulate} micro-batches"] * (
        settings.accumulate > 1
    )
    shared = f" = {' x '.join([*parts, str(settings.micro_batch(processes))])}" if parts else ""
    return f"batch {settings.batch_size}{shared}"


def _resume(step: TrainingStep, checkpoints: Checkpoints) -> None:
    """Take up the last good checkpoint, the same one in every process."""
    state = checkpoints.load_last() if step.processes.is_main else None
    done = step.processes.broadcast(state.step if state else 0)
    if done > step.settings.steps:
        raise UserError(
            checkpoints.folder,
            f"is at step {done} already, past {step.settings.steps}",
            f"use {done} steps or more, or move {checkpoints.folder} away to start over",
        )
    if done:
        state = state or checkpoints.load(done, is_checked=True)
        state.restore(step.model, step.average, *step.optimizers)
        step.means.go_on(state.sums)
        step.number = done


def _save(step: TrainingStep, writer: CheckpointWriter) -> None:
    """Write a checkpoint; a stop between two rows of the log takes what was gathered for the next one with it."""
    state = TrainingState.of(step.number, step.model, step.average, *step.optimizers, sums=step.means.so_far)
    state = replace(state, optimizer=collected(state.optimizer, step.processes))
    if step.processes.is_main:
        writer.save(state)


def _take_steps(
    step: TrainingStep,
    sampler: EpochSampler,
    checkpoints: Checkpoints,
    progress: _Progress,
    on_step: Sequence[OnStep],
    validate: Validate | None,
    looks: Looks,
) -> None:
    """All remaining steps."""
    settings, processes = step.settings, step.processes
    step.release_average()
    average = step.model if step.average is None else step.average
    with (
        stop_requests() as requested,
        progress.bar,
        closing(prefetched(_batches(step, sampler), FETCHED_AHEAD)) as batches,
        CheckpointWriter(checkpoints) as writer,
    ):
        for batch in processes.in_time(batches):
            stopped = processes.vote(bool(requested()))
            step(batch)
            progress.bar.update()
            stop = stopped()
            planned = step.number % settings.checkpoint_every == 0 or step.number == settings.steps
            if planned or step.number % settings.log_every == 0:
                progress.read()
            with progress.speed.paused(), processes.at_leisure():
                if planned:
                    writer.wait()  # before more is logged: what failed is told where it happened
                if is_seen := stop or planned or looks(step.number):
                    step.gather_average()
                if planned and validate is not None:
                    progress.log(validate(average))
                for call in on_step if processes.is_main else ():
                    call(step.number, average)
                if stop or planned:
                    _save(step, writer)
                if is_seen:
                    step.release_average()
            if stop:
                with processes.at_leisure():
                    writer.wait()
                processes.barrier()
                raise_for(requested() or signal.SIGTERM)
    processes.barrier()


def _batches(step: TrainingStep, sampler: EpochSampler) -> Iterator[dict[str, Tensor]]:
    """This process's rows of the remaining global batches, in memory that a GPU can copy from by itself."""
    for number in range(step.number, step.settings.steps):
        indices, flips = sampler.batch(number)
        batch = step.task.fetch(indices[step.share], flips[step.share])
        if kind_of(step.device).pinned:
            batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
        yield batch


@dataclass(frozen=True)
class _Logs:
    """What training logs: values that equal runs share, and how fast this one goes."""

    values: LiveLog
    speed: LiveLog

    @classmethod
    def of(cls, folder: Path, step: int) -> _Logs:
        return cls(LiveLog(folder, step), LiveLog(speed_folder(folder), step))


class _Progress:
    """The bar, the log (in rank 0 only), and how fast a run goes."""

    def __init__(
        self, step: TrainingStep, description: str, live: _Logs | None, speed: Throughput, checkpoints: Checkpoints
    ) -> None:
        self.step, self.description = step, description
        self.live, self.speed, self.checkpoints = live, speed, checkpoints
        self.read_at = step.number
        self.bar = progress(
            doing=description, total=step.settings.steps, initial=step.number, unit="step", silent=live is None
        )

    def read(self) -> None:
        """Wait for the device and log what happened since the last reading.

        Raises:
            StageFailure: too many steps in a row were skipped.
        """
        reading, number = self.step.means.read(), self.step.number
        if reading.longest >= BAD_STEPS_IN_A_ROW:
            raise self._failure(reading.longest)
        speed = self.speed.read((number - self.read_at) * self.step.settings.batch_size)
        self.read_at = number
        if self.live is None:
            return
        if reading.skipped:
            message = f"sfd: {self.description}: skipped {reading.skipped} of the steps before {number}, not finite"
            self.bar.write(message, file=sys.stderr)
        rate = {"learning_rate": learning_rate(self.step.settings, number - 1)}
        self.log(reading.means | rate)
        self.live.speed.log(number, speed)
        seen = {"loss": f"{reading.means['loss']:.4g}"} if reading.means else {}
        seen |= {"images/s": f"{speed['images_per_second']:.4g}", "memory": f"{memory(self.step.device) / 1e9:.3g} GB"}
        seen |= {"MFU": f"{speed['mfu']:.1%}"} if "mfu" in speed else {}
        self.bar.set_postfix(seen, refresh=False)

    def log(self, values: dict[str, float]) -> None:
        """Log values of the step just taken."""
        if self.live is not None:
            self.live.values.log(self.step.number, values)

    def _failure(self, bad: int) -> StageFailure:
        steps = self.checkpoints.steps()
        kept = f"the last good checkpoint is {self.checkpoints.path(steps[-1])}" if steps else "there is no checkpoint"
        problem = f"the loss or its gradient was not finite in {bad} steps in a row before step {self.step.number}"
        remedy = "a lower learning rate, clipping or fp32 may help"
        return StageFailure(self.description, f"{problem} ({kept})", remedy)

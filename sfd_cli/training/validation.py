"""The validation error of a transformer: on images kept out of training, at fixed times and with fixed noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sfd_cli.config import DiT
from sfd_cli.data.near_duplicates import Split, store_clusters
from sfd_cli.data.store import Store
from sfd_cli.devices import doubled
from sfd_cli.diffusion.latents import LatentSpace, Streams
from sfd_cli.diffusion.objective import interpolate, velocity_of_data, velocity_target
from sfd_cli.diffusion.schedule import Schedule, schedule_of
from sfd_cli.distributed.processes import Processes
from sfd_cli.networks.precision import autocast, choose_precision
from sfd_cli.pipeline.seeds import initial_noise
from sfd_cli.training.velocity_task import VelocityTask

TIMES = 4
"""Points of progress in every part of the schedule."""

# Fixed, so that the errors of runs with other seeds are of the same noise, and no rounding follows another batch.
NOISE_SEED, BATCH = 0, 64

Examples = Callable[[np.ndarray], tuple[Tensor, Tensor]]

KINDS = {(True, True): "both", (False, True): "alone", (True, False): "alone"}
"""What a phase is called by whether (textures, semantics) move in it."""


@dataclass(frozen=True)
class Part:
    """A part of the schedule that has an error of its own.

    Attributes:
        name: both, alone; or early, middle, late.
        progress: where the error is taken, the midpoints of TIMES equal pieces.
        length: progress in this part.
        moves: which streams have an error in it; one that stands still has none.
    """

    name: str
    progress: tuple[float, ...]
    length: float
    moves: Streams[bool]


def parts_of(schedule: Schedule) -> tuple[Part, ...]:
    """Semantics alone, both and textures alone: those there are, in the order in which they begin.

    Phases with the same streams moving are one part. Where both streams move from beginning to end there are early,
    middle and late instead, thirds of progress.
    """
    spans: dict[Streams[bool], list[tuple[float, float]]] = {}
    for phase in schedule.phases:
        spans.setdefault(phase.moves, []).append((phase.start, phase.end))
    if set(spans) == {(True, True)}:
        third, both = schedule.end / 3, Streams(True, True)
        names = enumerate(("early", "middle", "late"))
        named = [(name, [(number * third, (number + 1) * third)], both) for number, name in names]
    else:
        named = [(KINDS[moves], stretch, moves) for moves, stretch in spans.items() if any(moves)]
    return tuple(
        Part(name, tuple(_midpoints(stretch)), sum(end - start for start, end in stretch), moves)
        for name, stretch, moves in named
    )


def _midpoints(spans: Sequence[tuple[float, float]]) -> Iterator[float]:
    """Midpoints of TIMES equal pieces of spans (start, end) laid end to end."""
    length = sum(end - start for start, end in spans)
    for piece in range(TIMES):
        left = length * (piece + 0.5) / TIMES
        for start, end in spans:
            if left <= end - start:
                yield start + left
                break
            left -= end - start


def shared_clusters(store: Store, processes: Processes) -> np.ndarray:
    """`store_clusters`, found by one process: another machine's rounding must not give another process its own."""
    found = processes.broadcast(store_clusters(store) if processes.is_main else None)
    assert found is not None
    return found


class VelocityErrors:
    """Plain squared errors of a network's velocity on images of a store, at fixed times and with fixed noise.

    Args:
        task: the latents and the classes.
        section: of the prediction and the precision.
        examples: latents (n, C, h, w) and conditions (n,) at positions (n,); without it those of the task.
    """

    def __init__(self, task: VelocityTask, section: DiT, examples: Examples | None = None) -> None:
        self._task, self._examples = task, examples or task.examples
        self._by_data = section.prediction == "data"
        self._precision = choose_precision(section.precision, task.device)

    @torch.no_grad()
    def at(
        self, model: nn.Module, rows: np.ndarray, times: Streams[Tensor], processes: Processes, seed: int = NOISE_SEED
    ) -> Tensor:
        """Mean squares over the channels and latent pixels of each stream, textures first.

        Batches are the same for any number of processes, and each is the work of one of them, so that not even the
        rounding depends on it.

        Args:
            model: the network; every process calls this alike.
            rows: positions in the store; the images are taken as they are, with their labels.
            times: of both streams, (times,) each.
            processes: which share the batches.
            seed: of the noise, of which an image's own follows from its index in the image set.

        Returns:
            (rows, times, 2 streams, 2) float64 on the CPU: of the error, and of the predicted velocity itself.
        """
        errors = torch.zeros(len(rows), len(times.texture), 2, 2, dtype=torch.float64)
        for start in range(0, len(rows), BATCH)[processes.rank :: processes.count]:
            errors[start : start + BATCH] = self._of_batch(model, rows[start : start + BATCH], times, seed)
        return processes.sum(errors)

    def _of_batch(self, model: nn.Module, rows: np.ndarray, times: Streams[Tensor], seed: int) -> Tensor:
        task, space = self._task, self._task.space
        data, labels = self._examples(rows)
        noise = initial_noise(seed, task.store.indices[rows].tolist(), space.shape).to(task.device)
        found = []
        for pair in zip(*(time.tolist() for time in times), strict=True):
            at = Streams(*(torch.full((len(rows),), time, device=task.device) for time in pair))
            noisy = interpolate(data, noise, at, space)
            with autocast(self._precision, task.device):
                velocity = model(noisy, *at, labels, False).float()
            target = velocity_of_data(data, noisy, at, space) if self._by_data else velocity_target(data, noise)
            both = [_means_of_squares(one, space) for one in (velocity - target, velocity)]
            found.append(torch.stack(both, dim=-1))
        return torch.stack(found, dim=1).cpu()


def _means_of_squares(values: Tensor, space: LatentSpace) -> Tensor:
    """Over channels and latent pixels of each stream: (B, 2) float64; 0 of a stream without channels."""
    streams = space.views(doubled(values.square()))
    return torch.stack([part.sum((1, 2, 3)) / max(part[0].numel(), 1) for part in streams], dim=1)


class Validation:
    """Squared velocity error of a network, by stream and by part of the schedule, on a split of a store.

    The error is the plain mean over channels, latent pixels, images and times, without the weights and the cosine of
    the objective, of the images as they are, with their labels. An image's noise follows from its index in the image
    set. Times are spread evenly over the progress of the schedule, whatever those of training are (`time_mean`,
    `objective`, leads that vary), so that runs compare; the precision is that of training.

    Args:
        task: the latents and the classes.
        section: of the schedule, the prediction and the precision.
        split: what is held out, and the training images to compare with.
        processes: which share the images.
    """

    def __init__(self, task: VelocityTask, section: DiT, split: Split, processes: Processes) -> None:
        self._task, self._processes, self._split = task, processes, split
        self._errors = VelocityErrors(task, section)
        self._schedule = schedule_of(section)
        self._parts = parts_of(self._schedule)

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Errors by name; every process calls this alike, and each gets the same, however many there are.

        `validation_<stream>` is the mean over all progress in which the stream moves, `validation_<stream>_<part>` that
        over a part of it; `training_...` are the same of training images.
        """
        errors = self.errors(model)
        held = len(self._split.held_out)
        return self._means("validation", errors[:held]) | self._means("training", errors[held:])

    @torch.no_grad()
    def errors(self, model: nn.Module) -> Tensor:
        """Error of every image, held-out ones first, at every time and of each stream: (n, times, 2) float64, CPU.

        Batches are the same for any number of processes, and each is the work of one of them, so that not even the
        rounding depends on it.
        """
        rows = np.concatenate((self._split.held_out, self._split.control))
        progress = torch.tensor([progress for part in self._parts for progress in part.progress])
        return self._errors.at(model, rows, self._schedule.times(progress), self._processes)[..., 0]

    def _means(self, prefix: str, errors: Tensor) -> dict[str, float]:
        """Means over the images (n, times, 2), by name."""
        by_part = errors.mean(dim=0).unflatten(0, (len(self._parts), TIMES)).mean(dim=1).tolist()  # parts x streams
        space, means = self._task.space, {}
        for stream, (name, width) in enumerate(zip(Streams._fields, (space.texture, space.semantic), strict=True)):
            moving = [number for number, part in enumerate(self._parts) if width and part.moves[stream]]
            length = sum(self._parts[number].length for number in moving)
            if length:
                whole = sum(by_part[number][stream] * self._parts[number].length for number in moving) / length
                means[f"{prefix}_{name}"] = whole
            for number in moving:
                means[f"{prefix}_{name}_{self._parts[number].name}"] = by_part[number][stream]
        return means

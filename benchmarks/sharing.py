"""What several processes share of a step: gradients into buckets at once, optimiser state and averages in parts.

Three ways for the same step, which must give the same weights, on a network of large weights and few images, where what
is done once per weight counts most:

    plain     DDP as it is: gradients are copied into buckets one by one, every process updates all weights, and one
              all averages
    at once   all gradients of a bucket are copied together
    shared    and every process has the moments and the averages of its own weights alone: what `sfd train` does

    python benchmarks/sharing.py                                   # two processes on this machine's CPU
    torchrun --nproc-per-node 8 benchmarks/sharing.py --device cuda --width 4096 --layers 40      # 670 M weights
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import arguments, interleaved, ratios, save, table
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from sfd_cli.distributed.processes import Processes
from sfd_cli.training.settings import LoopSettings
from sfd_cli.training.sharding import local
from sfd_cli.training.step import TrainingStep


class AtOnce(Processes):
    """Every process has all of the state."""

    def shard(self, kind: type[Optimizer], groups: list[dict[str, Any]], **options: Any) -> Optimizer:
        """The optimiser as it is."""
        return kind(groups, **options)


class Plain(AtOnce):
    """And gradients go into the buckets one by one."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """DDP with what it does by itself."""
        return DistributedDataParallel(model, gradient_as_bucket_view=True)


CANDIDATES = {"plain": Plain, "at once": AtOnce, "shared": Processes}


class Rows:
    """Keep rows of numbers as they are."""

    def __init__(self, width: int, images: int) -> None:
        self.rows = torch.randn(images, width, generator=torch.Generator().manual_seed(0))

    def fetch(self, indices: np.ndarray, flips: np.ndarray) -> dict[str, Tensor]:
        """The rows at `indices`."""
        return {"rows": self.rows[torch.from_numpy(indices)]}

    def draw(self, generator: torch.Generator, count: int) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def losses(self, model: nn.Module, batch: dict[str, Tensor], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """How far they are off."""
        return {"loss": (model(batch["rows"]) - batch["rows"]).square().mean()}


def step_of(
    kind: type[Processes], joined: Processes, options: argparse.Namespace, device: torch.device
) -> TrainingStep:
    """A training in one of the ways, before its first step."""
    torch.manual_seed(0)
    layers = nn.Sequential(*(nn.Linear(options.width, options.width) for _ in range(options.layers)))
    settings = LoopSettings(10**6, 4 * joined.count, 1e-4, 10**6, 10**6, seed=0, ema_decay=0.999)
    processes = kind(joined.rank, joined.count, joined.local_rank)
    step = TrainingStep(Rows(options.width, settings.batch_size), layers, settings, processes, device)
    step.release_average()
    return step


def held(step: TrainingStep) -> float:
    """Megabytes of moments and averages that this process has."""
    parts = [part for optimizer in step.optimizers for part in local(optimizer).state.values()]
    averages = [] if step.average is None else list(step.average.parameters())
    return sum(tensor.nbytes for tensor in [*averages, *(tensor for part in parts for tensor in part.values())]) / 1e6


def measured(joined: Processes, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Times and megabytes of each."""
    steps = {name: step_of(kind, joined, options, device) for name, kind in CANDIDATES.items()}
    rows = np.arange(4 * joined.count)

    def taken(step: TrainingStep) -> None:
        for _ in range(options.steps):
            step(step.task.fetch(rows[step.share], np.zeros(4, np.int64)))

    calls = {name: lambda step=step: taken(step) for name, step in steps.items()}
    timings = interleaved(calls, options.repetitions, device=device, before=joined.barrier)
    plain, *others = steps.values()
    for other in others:
        for mine, theirs in zip(plain.model.parameters(), other.model.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    megabytes = {name: joined.everyones(held(step)) for name, step in steps.items()}
    found = [
        {
            "candidate": name,
            "step, s": timing.median / options.steps,
            "x plain": ratios(timings["plain"], timing)["median"],
            "MB of state, largest": max(megabytes[name]),
        }
        for name, timing in timings.items()
    ]
    seconds = {name: timing.seconds for name, timing in timings.items()}
    speeds = {name: ratios(timings["plain"], timing) for name, timing in timings.items()}
    weights = sum(weight.numel() for weight in plain.model.parameters())
    facts = {"processes": joined.count, "weights": weights, "megabytes": megabytes, "faster than plain": speeds}
    return facts | {"rows": found, "seconds": seconds}


def main() -> None:
    """Measure in the processes of torchrun, or in two started here, and save."""
    parser = arguments(__doc__)
    parser.add_argument("--width", type=int, default=512, help="of the layers [%(default)s]")
    parser.add_argument("--layers", type=int, default=24, help="how many [%(default)s]")
    parser.add_argument("--steps", type=int, default=5, help="timed together [%(default)s]")
    options = parser.parse_args()
    if "WORLD_SIZE" not in os.environ:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        done = subprocess.run([*launch, str(Path(__file__)), *sys.argv[1:]], check=False)
        raise SystemExit(done.returncode)
    joined = Processes.join()
    result = measured(joined, options, joined.device(options.device))
    if joined.is_main:
        table(result["rows"])
        save("sharing", options, result)
    joined.leave()


if __name__ == "__main__":
    main()

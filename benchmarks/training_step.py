"""How long does a training step take? Ours, compiled and not, against the same network in plain eager PyTorch.

All candidates start from the same weights and see the same batch, times, noise and dropped labels. Ours is the step
of `sfd_cli/training/step.py` itself: draws, the three losses, backward, fused AdamW with the gradient's norm and its
check for NaN, the average of the weights, the running means of the losses. The baseline is `plain_dit.py`.

    eager     `dit.compile: false`
    compiled  `dit.compile: true`: every block compiled, all with one graph
    network   the whole network compiled as one graph (--candidates)
    graphs    that, with CUDA graphs (--candidates; `mode="reduce-overhead"`)

Before anything is timed the losses of the first steps are compared. "First step" holds the compiler's work, from an
empty cache; "pays after" is how many steps it takes until the time saved exceeds it. Memory is measured in processes
of their own: on a GPU the most that was allocated, on a CPU how far the resident set rose within a step.
FLOPs are those of the matrix products and the attention, forward and twice that backward, from the architecture.

    python benchmarks/training_step.py                                       # CPU: two sizes
    python benchmarks/training_step.py --device cuda                         # GPU: S, B, XL and 1.0B in bfloat16
    python benchmarks/training_step.py --device cuda --sizes XL --batches 64 128 256 --candidates eager compiled graphs
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Timing, arguments, interleaved, ratios, save, table
from plain_dit import PlainDiT, PlainTraining
from torch import Tensor, nn

from sfd_cli.config import DiT
from sfd_cli.data.order import EpochSampler
from sfd_cli.data.shards import StoreWriter
from sfd_cli.data.store import Field, Store
from sfd_cli.distributed.processes import Processes
from sfd_cli.formats.reference_dit import dit_to_reference
from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig
from sfd_cli.training.settings import LoopSettings
from sfd_cli.training.step import TrainingStep, seed_of_step
from sfd_cli.training.throughput import peak_flops
from sfd_cli.training.transformer import flops_per_image
from sfd_cli.training.velocity_task import VelocityTask

CHECKED_STEPS = 3
EMA_DECAY = 0.9999
LEARNING_RATE = 1e-4
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
"""Largest relative difference of a loss to the baseline's over the first steps."""


@dataclass(frozen=True)
class Size:
    """A network, the latents it is for, and images per step on a CPU and on a GPU."""

    network: LightningDiTConfig
    cpu_batch: int
    gpu_batch: int


def _imagenet(width: int, depth: int, heads: int, cpu_batch: int, gpu_batch: int) -> Size:
    """256 tokens of 48 channels (32 of textures, 16 of semantics) and REPA to a ViT-B's patch tokens."""
    network = LightningDiTConfig(
        grid=16,
        in_channels=48,
        num_classes=1000,
        semantic_channels=16,
        width=width,
        depth=depth,
        heads=heads,
        repa_depth=2,
        feature_width=768,
    )
    return Size(network, cpu_batch, gpu_batch)


def _small(width: int, depth: int, grid: int, batch: int) -> Size:
    """Latents as the demo's: 24 channels of textures, 8 of semantics, REPA to a ViT-S."""
    network = LightningDiTConfig(
        grid=grid,
        in_channels=32,
        num_classes=10,
        semantic_channels=8,
        width=width,
        depth=depth,
        heads=4,
        repa_depth=2,
        repa_width=256,
        feature_width=384,
    )
    return Size(network, batch, batch)


SIZES = {
    "tiny": _small(32, 2, 2, 4),
    "demo": _small(192, 6, 4, 64),
    "S": _imagenet(384, 12, 6, 4, 256),
    "B": _imagenet(768, 12, 12, 2, 128),
    # Two candidates at once, each with weights, moments and an average, must fit into 80 GB beside the activations.
    "XL": _imagenet(1152, 28, 16, 1, 64),
    "1p0b": _imagenet(1536, 24, 24, 1, 32),
}


@dataclass
class Problem:
    """What all candidates share: the first weights, one batch as it is fetched, and the task."""

    size: LightningDiTConfig
    batch_size: int
    precision: str
    device: torch.device
    task: VelocityTask
    model: LightningDiT
    batch: dict[str, Tensor]


class Ours:
    """The step that trains, on a network that `prepare` may have compiled."""

    def __init__(self, problem: Problem, prepare: Callable[[nn.Module], nn.Module]) -> None:
        settings = LoopSettings(
            steps=1_000_000,
            batch_size=problem.batch_size,
            learning_rate=LEARNING_RATE,
            checkpoint_every=1_000_000,
            log_every=1_000_000,
            seed=0,
            ema_decay=EMA_DECAY,
            precision=problem.precision,
        )
        model = copy.deepcopy(problem.model)
        self.training = TrainingStep(problem.task, model, settings, Processes(), problem.device)
        self.training.network = prepare(model)
        self.batch = problem.batch

    def step(self) -> None:
        """One step, as the loop takes it between two readings of the losses."""
        self.training(self.batch)

    def losses(self) -> dict[str, float]:
        """Of the last step, if it was read before that."""
        return self.training.means.read().means


class Plain:
    """The step of `plain_dit.py`, with the draws that the loop makes for the same step."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        network = PlainDiT(problem.size)
        network.load_state_dict(dit_to_reference(problem.size, problem.model.state_dict()))
        space = problem.task.space
        mean, std = (torch.tensor(values, device=problem.device)[:, None, None] for values in (space.mean, space.std))
        offset = DiT.model_fields["delta_t"].default
        self.training = PlainTraining(
            network.to(problem.device), mean, std, offset, LEARNING_RATE, problem.precision == "bf16"
        )
        self.generator = torch.Generator(problem.device)
        self.count = 0
        self.latest: dict[str, float] = {}

    def step(self) -> None:
        """One step; its losses are read, as such scripts do."""
        self.generator.manual_seed(seed_of_step(0, self.count))
        draws = self.problem.task.draw(self.generator, self.problem.batch_size)
        batch = {name: tensor.to(self.problem.device, non_blocking=True) for name, tensor in self.problem.batch.items()}
        self.latest = self.training.step(batch, draws, EMA_DECAY)
        self.count += 1

    def losses(self) -> dict[str, float]:
        """Of the last step."""
        return self.latest


def _blocks(model: nn.Module) -> nn.Module:
    model.compile()
    return model


PREPARE: dict[str, Callable[[nn.Module], nn.Module]] = {
    "eager": lambda model: model,
    "compiled": _blocks,
    "network": lambda model: torch.compile(model),
    "graphs": lambda model: torch.compile(model, mode="reduce-overhead"),
}


def build(name: str, problem: Problem) -> Ours | Plain:
    """The candidate, ready to step."""
    return Plain(problem) if name == "plain" else Ours(problem, PREPARE[name])


def make_problem(size: LightningDiTConfig, batch_size: int, precision: str, device: torch.device) -> Problem:
    """Random latents in a store, a batch of them as the loop fetches it, and weights of which none are zero."""
    section = DiT(batch_size=batch_size, repa_width=size.repa_width)
    with tempfile.TemporaryDirectory() as folder:
        store = _random_latents(Path(folder) / "latents", size, batch_size)
        task = VelocityTask(store, section, None, device)
        batch = task.fetch(*EpochSampler(batch_size, batch_size, 0).batch(0))
    if device.type == "cuda":
        batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
    torch.manual_seed(0)
    model = LightningDiT(size)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():  # gates and last layer start at zero, where much of the network has no effect
                parameter.normal_(std=0.02)
    return Problem(size, batch_size, precision, device, task, model, batch)


def _random_latents(folder: Path, size: LightningDiTConfig, count: int) -> Store:
    side, textures = size.grid, size.in_channels - size.semantic_channels
    fields = {
        "texture": Field((2, textures, side, side)),
        "semantic": Field((2, size.semantic_channels, side, side)),
        "features": Field((2, side * side, size.feature_width)),
    }
    rng = np.random.default_rng(0)
    writer = StoreWriter(folder, fields, count, count, "latents", {"image_size": 256})
    arrays = {
        name: rng.standard_normal((count, *field.shape), np.float32).astype(np.float16)
        for name, field in fields.items()
    }
    writer.write_shard(0, arrays)
    statistics = {"mean": np.zeros(size.in_channels), "std": np.ones(size.in_channels)}
    labels = [index % size.num_classes for index in range(count)]
    classes = [str(number) for number in range(size.num_classes)]
    writer.finish(labels, [f"{index}.png" for index in range(count)], range(count), classes, statistics)
    return Store(folder)


def measure(name: str, batch_size: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All candidates at one size and batch."""
    device, size = torch.device(options.device), SIZES[name].network
    names = ["plain", *options.candidates]
    first, differences, timings = timed(names, make_problem(size, batch_size, options.precision, device), options)
    if max(differences.values()) > TOLERANCE[options.precision]:
        raise SystemExit(f"{name}: the losses differ, so there is nothing to compare: {differences}")
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    memory = {candidate: _memory_in_a_process(candidate, name, batch_size, options) for candidate in names}
    flops = flops_per_image(size) * batch_size
    peak = peak_flops(device, options.precision)
    rows = []
    for candidate, timing in timings.items():
        rows.append(
            {
                "size": name,
                "batch": batch_size,
                "candidate": candidate,
                "seconds": timing.median,
                "spread": timing.spread,
                "ratio": ratios(timings["plain"], timing),
                "first_step": first[candidate],
                "pays_after": _pays_after(first, timings, candidate),
                "loss_difference": differences[candidate],
                "memory_mib": memory[candidate],
                "gflop_per_image": flops / batch_size / 1e9,
                "tflops": flops / timing.median / 1e12,
                "mfu": flops / timing.median / peak if peak else None,
                "repetitions": timing.seconds,
            }
        )
    return rows


def timed(
    names: list[str], problem: Problem, options: argparse.Namespace
) -> tuple[dict[str, float], dict[str, float], dict[str, Timing]]:
    """Seconds of the first step, largest difference of a loss to the baseline's, and timings of each candidate."""
    torch.compiler.reset()  # what was compiled for another size would make the compiler try for any size
    candidates = {name: build(name, problem) for name in names}
    first, losses = {}, {}
    for name, training in candidates.items():
        first[name], losses[name] = first_steps(training)
    differences = {name: largest_difference(losses["plain"], losses[name]) for name in names}
    steps = {name: training.step for name, training in candidates.items()}
    return first, differences, interleaved(steps, options.repetitions, 1, problem.device)


def first_steps(training: Ours | Plain) -> tuple[float, list[dict[str, float]]]:
    """Seconds of the very first step, and the losses of the first steps."""
    started = time.perf_counter()
    training.step()
    losses = [training.losses()]  # waits for the device
    seconds = time.perf_counter() - started
    for _ in range(CHECKED_STEPS - 1):
        training.step()
        losses.append(training.losses())
    return seconds, losses


def largest_difference(expected: list[dict[str, float]], found: list[dict[str, float]]) -> float:
    """Largest relative difference of any loss term in any step."""
    return max(
        abs(one[name] - other[name]) / abs(one[name])
        for one, other in zip(expected, found, strict=True)
        for name in one
    )


def _pays_after(first: dict[str, float], timings: dict[str, Timing], candidate: str) -> int | None:
    """Steps until a compiled candidate has overtaken ours in eager mode, or the baseline where that is left out."""
    reference = "eager" if "eager" in timings else "plain"
    saved = timings[reference].median - timings[candidate].median
    if candidate in ("plain", "eager") or saved <= 0:
        return None
    return round((first[candidate] - first[reference]) / saved) + 1


def _memory_in_a_process(candidate: str, name: str, batch_size: int, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--memory-of", candidate, "--sizes", name, "--batches", str(batch_size)]
    command += ["--device", options.device, "--precision", options.precision]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        raise SystemExit(f"measuring the memory of {candidate} failed:\n{finished.stderr}")
    return json.loads(finished.stdout.splitlines()[-1])


def memory_of(candidate: str, name: str, batch_size: int, options: argparse.Namespace) -> dict[str, float]:
    """MiB at the highest point of a step after the first ones, and how far that is above the state between steps."""
    device = torch.device(options.device)
    problem = make_problem(SIZES[name].network, batch_size, options.precision, device)
    training = build(candidate, problem)
    for _ in range(2):
        training.step()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        between = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    else:
        started = _status("VmHWM")  # with all that the compiler needed
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts over
        between = _status("VmRSS")
    training.step()
    if device.type == "cuda":
        top = torch.cuda.max_memory_allocated(device)
        return {"step": (top - between) / 2**20, "highest": top / 2**20}
    top = _status("VmHWM")
    return {"step": (top - between) / 2**20, "highest": top / 2**20, "highest_before": started / 2**20}


def _status(key: str) -> int:
    """A figure of Linux's /proc/self/status, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """What the table shows of a result."""
    ratio, mfu = row["ratio"], row["mfu"]
    return {
        "size": row["size"],
        "batch": row["batch"],
        "candidate": row["candidate"],
        "step s": row["seconds"],
        "x plain": f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})",
        "first step s": f"{row['first_step']:.1f}",
        "pays after": row["pays_after"] or "-",
        "memory MiB": f"{row['memory_mib']['step']:.0f}",
        "TFLOP/s": row["tflops"],
        "MFU": f"{mfu:.1%}" if mfu else "-",
        "loss diff": f"{row['loss_difference']:.0e}",
    }


def main(argv: list[str] | None = None) -> None:
    """Measure, print, save."""
    parser = arguments(__doc__)
    parser.set_defaults(repetitions=4)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), help="networks [CPU: demo S; GPU: S B XL 1p0b]")
    parser.add_argument("--batches", nargs="+", type=int, help="images per step [one for each size]")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="[CPU: fp32; GPU: bf16]")
    parser.add_argument(
        "--candidates", nargs="+", choices=list(PREPARE), help="ours [CPU: eager compiled; GPU: compiled]"
    )
    parser.add_argument("--memory-of", choices=["plain", *PREPARE], help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    gpu = torch.device(options.device).type == "cuda"
    options.sizes = options.sizes or (["S", "B", "XL", "1p0b"] if gpu else ["demo", "S"])
    options.candidates = options.candidates or (["compiled"] if gpu else ["eager", "compiled"])
    options.precision = options.precision or ("bf16" if gpu else "fp32")
    if options.memory_of:
        print(json.dumps(memory_of(options.memory_of, options.sizes[0], options.batches[0], options)))
        return
    with tempfile.TemporaryDirectory() as cache:  # no compiled code of an earlier run makes the first step look cheap
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        rows = []
        for name in options.sizes:
            for batch in options.batches or [SIZES[name].gpu_batch if gpu else SIZES[name].cpu_batch]:
                try:
                    rows += measure(name, batch, options)
                except torch.OutOfMemoryError:
                    print(f"{name} at {batch} images: out of memory", file=sys.stderr)
    if not rows:
        raise SystemExit("nothing fitted into memory")
    table([_row(row) for row in rows])
    save("training_step", options, {"tolerance": TOLERANCE[options.precision], "rows": rows})


if __name__ == "__main__":
    main()

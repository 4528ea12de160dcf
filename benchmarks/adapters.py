"""What does a training step hold in memory, with all weights trained and with an adapter (`dit.adapter`)?

For each size the step of `sfd_cli/training/step.py` is taken with all weights and with adapters of several ranks, on
the same batch, each in a process of its own. What is held is counted from the tensors themselves, every storage once:
weights, gradients, the optimiser's moments, the average. The peak is that of the process's anonymous memory while it
builds the network and takes three steps, above what it held before (on a CPU; Linux, it reads /proc).

    python benchmarks/adapters.py                          # the demo's size and S; a minute or two on one core
    python benchmarks/adapters.py --sizes B --ranks 16
    python benchmarks/adapters.py --sizes S B XL --planned # on paper: `sfd plan`'s figures, nothing is allocated
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from functools import partial
from typing import Any

import peft  # noqa: F401  # here, because what its import takes is no part of a step
import torch
from harness import arguments, save, table
from memory import in_its_own_process
from torch import Tensor
from training_step import EMA_DECAY, LEARNING_RATE, SIZES, make_problem

from sfd_cli.config import DiT
from sfd_cli.distributed.processes import Processes
from sfd_cli.networks.adapters import LABELS, adapt, lora
from sfd_cli.training.costs import step_memory
from sfd_cli.training.settings import LoopSettings
from sfd_cli.training.step import TrainingStep

STEPS = 3
FULL = 0
"""As a rank: all weights are trained."""


def held(name: str, batch_size: int, rank: int) -> dict[str, int]:
    """Take some steps; bytes of what the training holds after them, and how many numbers are trained."""
    problem = make_problem(SIZES[name].network, batch_size, "fp32", torch.device("cpu"))
    network = problem.model
    if rank:
        adapt(network, lora(network, rank, rank, [LABELS], "base"))
    settings = LoopSettings(
        steps=STEPS + 1,
        batch_size=batch_size,
        learning_rate=LEARNING_RATE,
        checkpoint_every=STEPS + 1,
        log_every=STEPS + 1,
        seed=0,
        ema_decay=EMA_DECAY,
    )
    training = TrainingStep(problem.task, network, settings, Processes(), problem.device)
    gradients = 0

    def note(weight: Tensor) -> None:
        nonlocal gradients
        assert weight.grad is not None
        gradients += weight.grad.nbytes

    hooks = [weight.register_post_accumulate_grad_hook(note) for weight in training.parameters]
    training(problem.batch)
    for hook in hooks:
        hook.remove()
    for _ in range(STEPS - 1):
        training(problem.batch)
    assert training.average is not None
    weights = list(network.parameters())
    seen = {weight.data_ptr() for weight in weights}
    moments = [
        part
        for optimizer in training.optimizers
        for state in optimizer.state.values()
        for key, part in state.items()
        if key != "step"
    ]
    return {
        "trained": sum(weight.numel() for weight in training.parameters),
        "weights": _bytes(weights),
        "gradients": gradients,
        "moments": _bytes(moments),
        "average": _bytes(weight for weight in training.average.parameters() if weight.data_ptr() not in seen),
    }


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def section_of(name: str, rank: int) -> DiT:
    """The settings of a training, as far as its memory depends on them."""
    network = SIZES[name].network
    adapter: dict[str, Any] = {"init": "base", "adapter": {"rank": rank}} if rank else {}
    return DiT(width=network.width, depth=network.depth, heads=network.heads, repa_depth=network.repa_depth, **adapter)


def measure(name: str, rank: int, options: argparse.Namespace) -> dict[str, Any]:
    """One row of the table: megabytes."""
    size = SIZES[name]
    batch_size = options.batch or size.cpu_batch
    planned = step_memory(size.network, section_of(name, rank), batch_size, bf16=False)
    fixed = step_memory(size.network, section_of(name, rank), 0, bf16=False)
    row: dict[str, Any] = {"size": name, "trained": f"rank {rank}" if rank else "all weights", "batch": batch_size}
    if not options.planned:
        found = in_its_own_process(partial(held, name, batch_size, rank))
        parts = found["result"]
        row |= {"numbers trained": parts.pop("trained")}
        row |= {f"{part}, MB": size / 1e6 for part, size in parts.items()}
        row |= {"together, MB": sum(parts.values()) / 1e6, "peak, MB": found["mb"]}
    return row | {"together as planned, MB": fixed / 1e6, "peak as planned, MB": planned / 1e6}


def main() -> None:
    """Measure, print, save."""
    parser = arguments(__doc__, timed=False)
    parser.add_argument("--sizes", nargs="+", default=["demo", "S"], choices=list(SIZES), help="networks [%(default)s]")
    parser.add_argument("--ranks", nargs="+", type=int, default=[4, 16, 64], help="of the adapters [%(default)s]")
    parser.add_argument("--batch", type=int, help="images of a step [those of training_step.py]")
    parser.add_argument("--planned", action="store_true", help="on paper alone")
    options = parser.parse_args()
    options.device = "cpu"
    rows = [measure(name, rank, options) for name in options.sizes for rank in [FULL, *options.ranks]]
    table(rows)
    save("adapters-planned" if options.planned else "adapters", options, {"rows": rows})


if __name__ == "__main__":
    main()

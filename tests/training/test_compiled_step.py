"""A compiled training step: one graph for all blocks, also where several processes share a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from training_task import COUNT, SETTINGS, Regression
from two_processes import in_two_processes

from sfd_cli.data.order import EpochSampler
from sfd_cli.distributed.processes import Processes
from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig
from sfd_cli.training.step import TrainingStep

CPU = torch.device("cpu")


class Counted:
    """A backend of the compiler that runs what it is given as it is, and counts."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


class Transformer(LightningDiT):
    """A transformer whose blocks have more weights than the first bucket of DDP, 1 MiB, of points as a sequence."""

    def __init__(self, backend: Counted) -> None:
        super().__init__(LightningDiTConfig(1, 5, 1, 2, width=192, depth=3, heads=4))
        self.backend = backend

    def compile(self, **options: Any) -> None:  # type: ignore[override]
        super().compile(backend=self.backend, **options)

    def forward(self, points: Tensor) -> Tensor:  # type: ignore[override]
        times = torch.full((len(points),), 0.5)
        return super().forward(points[:, :, None, None], times, times, torch.zeros(len(points), dtype=torch.int64))[
            :, :, 0, 0
        ]


def graphs(processes: Processes) -> int:
    """How many graphs two steps have needed."""
    torch.compiler.reset()
    backend = Counted()
    step = TrainingStep(Regression(), Transformer(backend), replace(SETTINGS, compile=True), processes, CPU)
    sampler = EpochSampler(COUNT, SETTINGS.batch_size, SETTINGS.seed)
    for number in range(2):
        indices, flips = sampler.batch(number)
        step(step.task.fetch(indices[step.share], flips[step.share]))
    return backend.graphs


def test_all_blocks_are_one_graph_in_each_of_two_processes_too(tmp_path: Path) -> None:
    def work(processes: Processes) -> tuple[int, int]:
        # Both here: who has computed gradients of compiled blocks cannot be forked any more.
        return graphs(Processes()), graphs(processes)

    assert in_two_processes(tmp_path, work) == [(1, 1), (1, 1)]

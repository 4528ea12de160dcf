"""Running means: over the steps that were not skipped, and over all processes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from two_processes import in_two_processes

from sfd_cli.distributed.processes import Processes
from sfd_cli.training.running_means import Reading, RunningMeans

CPU = torch.device("cpu")


def add(means: RunningMeans, loss: float, skipped: bool = False) -> None:
    values = {"loss": torch.tensor(loss), "twice": torch.tensor(2 * loss, dtype=torch.float64)}
    means.add(values, torch.tensor(skipped))


def test_means_leave_skipped_steps_out_and_start_over_at_every_reading() -> None:
    means = RunningMeans(CPU, Processes())
    for loss, skipped in ((1.0, False), (math.nan, True), (4.0, False)):
        add(means, loss, skipped)
    assert means.read() == Reading({"loss": 2.5, "twice": 5.0}, skipped=1, longest=1)
    add(means, 7.0)
    assert means.read() == Reading({"loss": 7.0, "twice": 14.0}, skipped=0, longest=0)


def test_skipped_steps_in_a_row_are_counted_across_readings_and_good_ones_end_the_row() -> None:
    means = RunningMeans(CPU, Processes())
    for skipped in (True, True, True, False, True, True):
        add(means, 1.0, skipped)
    assert means.read() == Reading({"loss": 1.0, "twice": 2.0}, skipped=5, longest=3)
    for _ in range(2):
        add(means, math.inf, skipped=True)
    assert means.read() == Reading({}, skipped=2, longest=4)
    add(means, 3.0)
    add(means, math.inf, skipped=True)
    assert means.read() == Reading({"loss": 3.0, "twice": 6.0}, skipped=1, longest=4)
    add(means, 3.0)
    assert means.read() == Reading({"loss": 3.0, "twice": 6.0}, skipped=0, longest=1)


class Elsewhere(Processes):
    """One process whose numbers lie where they cannot be read."""

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        assert values.device.type == "meta"
        return torch.zeros(values.shape)


def test_sums_are_kept_on_the_device_of_the_losses() -> None:
    device = torch.device("meta")
    means = RunningMeans(device, Elsewhere())
    assert means.read() == Reading({}, 0, 0)
    means.add({"loss": torch.zeros((), device=device)}, torch.zeros((), dtype=torch.bool, device=device))
    assert means.read() == Reading({}, 0, 0)


def test_two_processes_read_the_means_of_both_and_count_a_skipped_step_once(tmp_path: Path) -> None:
    losses = [[1.0, math.nan, 3.0], [5.0, 2.0, 7.0]]

    def work(processes: Processes) -> list[Reading]:
        means, readings = RunningMeans(CPU, processes), []
        for step, loss in enumerate(losses[processes.rank]):
            add(means, loss, skipped=step == 1)
        readings.append(means.read())
        for _ in range(3):
            add(means, math.nan, skipped=True)
        readings.append(means.read())
        add(means, math.nan, skipped=True)
        return [*readings, means.read()]

    expected = [Reading({"loss": 4.0, "twice": 8.0}, 1, 1), Reading({}, 3, 3), Reading({}, 1, 4)]
    assert in_two_processes(tmp_path, work) == [expected, expected]


def test_processes_agree_on_means_votes_and_what_the_first_says(tmp_path: Path) -> None:
    def work(processes: Processes) -> tuple[Any, ...]:
        mean = processes.mean(torch.tensor([1.0 + 2 * processes.rank, -3.0])).tolist()
        votes = [processes.any(flag) for flag in (False, processes.rank == 0, processes.rank == 1, True)]
        said = processes.broadcast(f"of {processes.rank}")
        processes.barrier()
        return mean, votes, said, processes.is_main

    answers = in_two_processes(tmp_path, work)
    for rank, answer in enumerate(answers):
        assert answer == ([2.0, -3.0], [False, True, True, True], "of 0", rank == 0)


@pytest.mark.parametrize("flag", [False, True])
def test_one_process_alone_agrees_with_itself(flag: bool) -> None:
    alone = Processes()
    assert alone.mean(torch.tensor([3.0])).tolist() == [3.0]
    assert alone.any(flag) is flag
    assert alone.broadcast("x") == "x"

"""Optimiser state and averages of several processes: each has its part, and nothing of the result depends on it."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import files_below
from test_fit import KilledError, fit
from torch import Tensor, nn
from training_task import COUNT, SETTINGS, Regression, assert_same, deep_network
from two_processes import in_two_processes

from sfd_cli.data.order import EpochSampler
from sfd_cli.distributed.processes import Processes
from sfd_cli.training.checkpoints import Checkpoints
from sfd_cli.training.sharding import local
from sfd_cli.training.step import TrainingStep

CPU = torch.device("cpu")


def stepped(processes: Processes, settings: Any = SETTINGS) -> TrainingStep:
    """Four steps of a network whose layers are alike."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(5, 16), *(nn.Linear(16, 16) for _ in range(6)), nn.Linear(16, 5))
    step = TrainingStep(Regression(), layers, settings, processes, CPU)
    sampler = EpochSampler(COUNT, settings.batch_size, settings.seed)
    for number in range(4):
        indices, flips = sampler.batch(number)
        step.release_average()
        step(step.task.fetch(indices[step.share], flips[step.share]))
    return step


def held(step: TrainingStep) -> tuple[int, int]:
    """Bytes of the optimisers' moments and of the averages that this process has."""
    parts = [part for optimizer in step.optimizers for part in local(optimizer).state.values()]
    moments = [tensor for part in parts for tensor in part.values() if tensor.ndim]
    assert step.average is not None
    return sum(tensor.nbytes for tensor in moments), sum(weight.nbytes for weight in step.average.parameters())


def test_each_of_two_processes_has_half_of_the_moments_and_averages_and_the_same_weights(tmp_path: Path) -> None:
    def work(processes: Processes) -> tuple[Any, ...]:
        step = stepped(processes)
        sizes = held(step)
        step.gather_average()
        assert step.average is not None
        shared = step.model.state_dict(), step.average.state_dict()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Processes, "shard", lambda processes, kind, groups, **options: kind(groups, **options))
            alone = stepped(processes)
        alone.gather_average()
        assert alone.average is not None
        return sizes, shared, (alone.model.state_dict(), alone.average.state_dict())

    one = stepped(Processes())
    found = in_two_processes(tmp_path, work)
    for whole, parts in zip(held(one), zip(*(sizes for sizes, _, _ in found), strict=True), strict=True):
        assert sum(parts) == whole
        assert max(parts) < 0.53 * whole
    for _, shared, replicated in found:
        for mine, theirs, module in zip(shared, replicated, (one.model, one.average), strict=True):
            assert module is not None
            for name, tensor in module.state_dict().items():
                assert torch.equal(mine[name], theirs[name]), "to the bit what it is without sharing"
                torch.testing.assert_close(mine[name], tensor, rtol=0, atol=1e-6)


class Dying(Regression):
    """Ends the run in its tenth step."""

    calls = 0

    def losses(self, *arguments: Any) -> dict[str, Tensor]:
        self.calls += 1
        if self.calls == 10:
            raise KilledError
        return super().losses(*arguments)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_processes_resume_to_the_same_bytes_and_one_goes_on_where_two_stopped_and_back(
    tmp_path: Path, optimizer: Any
) -> None:
    settings = replace(SETTINGS, optimizer=optimizer)

    def run(name: str, steps: int = 12, **extra: Any) -> Any:
        return fit(tmp_path / name, replace(settings, steps=steps), model=deep_network(), **extra)

    def work(processes: Processes) -> None:
        os.environ.update(WORLD_SIZE="2", RANK=str(processes.rank), LOCAL_RANK=str(processes.rank))
        run("whole")
        with suppress(KilledError):
            run("cut", task=Dying())
        run("cut")
        run("two, then one", steps=5)
        run("one, then two")

    one = run("one")
    run("one, then two", steps=5)
    in_two_processes(tmp_path, work)
    run("two, then one")
    last = {name: Checkpoints(tmp_path / name / "checkpoints") for name in ("one", "whole", "cut")}
    assert files_below(last["cut"].path(12)) == files_below(last["whole"].path(12))
    alone, shared = last["one"].load(12), last["whole"].load(12)
    assert alone.optimizer.keys() == shared.optimizer.keys()
    if optimizer == "adamw":  # Muon makes noise of the rounding of directions that a gradient hardly has
        for name in ("whole", "one, then two", "two, then one"):
            found = run(name)
            assert_same(one.model, found.model, 1e-6)
            assert_same(one.ema, found.ema, 1e-6)


class Told(Regression):
    """Tells its process to stop in its sixth step."""

    calls = 0

    def losses(self, *arguments: Any) -> dict[str, Tensor]:
        self.calls += 1
        if self.calls == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().losses(*arguments)


def test_one_process_that_is_told_to_stop_stops_both_after_the_next_step(tmp_path: Path) -> None:
    def work(processes: Processes) -> int | str | None:
        os.environ.update(WORLD_SIZE="2", RANK=str(processes.rank), LOCAL_RANK=str(processes.rank))
        try:
            fit(tmp_path / "stopped", task=Told() if processes.rank == 1 else Regression())
        except SystemExit as stopped:
            return stopped.code
        return None

    assert in_two_processes(tmp_path, work) == [143, 143]
    assert Checkpoints(tmp_path / "stopped" / "checkpoints").steps() == [5, 7]
    assert_same(fit(tmp_path / "whole").ema, fit(tmp_path / "stopped").ema, 1e-6)

"""One step: what each process takes of a batch, how micro-batches are added up, and what is drawn."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from training_task import COUNT, SETTINGS, Recorded, Regression, assert_same, network
from two_processes import in_two_processes

from sfd_cli.data.order import EpochSampler
from sfd_cli.distributed.processes import Processes
from sfd_cli.training.settings import LoopSettings
from sfd_cli.training.step import TrainingStep, seed_of_step

CPU = torch.device("cpu")


def stepped(
    processes: Processes, settings: LoopSettings = SETTINGS, task: Regression | None = None, steps: int = 4
) -> TrainingStep:
    """Take some steps on this process's share of the batches."""
    step = TrainingStep(task or Regression(), network(), settings, processes, CPU)
    sampler = EpochSampler(COUNT, settings.batch_size, settings.seed)
    for number in range(steps):
        indices, flips = sampler.batch(number)
        step(step.task.fetch(indices[step.share], flips[step.share]))
    return step


def test_two_processes_with_micro_batches_step_as_one_does(tmp_path: Path) -> None:
    def work(processes: Processes) -> tuple[Any, ...]:
        step = stepped(processes, replace(SETTINGS, accumulate=2))
        return step.share, step.number, step.model.state_dict(), step.means.read()

    one = stepped(Processes())
    means = one.means.read()
    assert one.share == slice(0, 8)
    for rank, (share, number, weights, reading) in enumerate(in_two_processes(tmp_path, work)):
        assert (share, number) == (slice(4 * rank, 4 * rank + 4), 4)
        for name, tensor in one.model.state_dict().items():
            torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-6)
        assert reading.means == pytest.approx(means.means, rel=1e-5)


class Counting(Processes):
    """Two processes in name alone, which note when gradients are not to be averaged."""

    def wrap(self, model: nn.Module) -> nn.Module:
        return model

    def shard(self, kind: type[Optimizer], groups: list[dict[str, Any]], **options: Any) -> Optimizer:
        return kind(groups, **options)

    def everyones(self, value: Any) -> list[Any]:
        return [value] * self.count

    def mean(self, values: Tensor) -> Tensor:
        return values

    def without_sync(self, network: nn.Module) -> AbstractContextManager[Any]:
        assert isinstance(network, nn.Sequential)
        noted.append("alone")
        return nullcontext()


noted: list[str] = []


class Noting(Recorded):
    """Notes the rows that each call of `losses` gets."""

    def losses(self, model: nn.Module, batch: dict[str, Tensor], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        noted.append("losses")
        self.seen = [*getattr(self, "seen", []), (batch["points"], draws["noise"])]
        return super().losses(model, batch, draws)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_each_process_gets_its_own_rows_of_the_draws_and_gradients_are_averaged_once_a_step(rank: int) -> None:
    noted.clear()
    task, settings = Noting(), replace(SETTINGS, batch_size=18, accumulate=3)
    step = stepped(Counting(rank, 3, rank), settings, task, steps=1)
    assert noted == ["alone", "losses", "alone", "losses", "losses"]
    assert step.share == slice(6 * rank, 6 * rank + 6)
    indices, flips = EpochSampler(COUNT, 18, settings.seed).batch(0)
    points = Regression().fetch(indices, flips)["points"][step.share]
    noise = task.drawn[0][step.share]
    assert len(task.drawn[0]) == 18
    for micro, (batch, draws) in enumerate(task.seen):
        rows = slice(2 * micro, 2 * micro + 2)
        assert torch.equal(batch, points[rows])
        assert torch.equal(draws, noise[rows])


def test_draws_follow_from_the_seed_and_the_number_of_the_step_alone() -> None:
    task = Recorded()
    stepped(Processes(), task=task)
    for number, drawn in enumerate(task.drawn):
        generator = torch.Generator().manual_seed(seed_of_step(SETTINGS.seed, number))
        assert torch.equal(drawn, torch.randn(8, 5, generator=generator))
    seeds = {seed_of_step(seed, step) for seed in range(20) for step in range(20)}
    assert len(seeds) == 400
    assert 2**62 < max(seeds) < 2**64
    assert seed_of_step(7, 3) == 5061563556724077661


def test_without_clipping_or_an_average_there_is_none() -> None:
    plain = replace(SETTINGS, clip_norm=None, ema_decay=None)
    step = stepped(Processes(), plain)
    assert step.ema is step.average is None
    loose = stepped(Processes(), replace(plain, clip_norm=1e9))
    assert_same(step.model, loose.model)
    kept = stepped(Processes(), replace(plain, ema_decay=0.5))
    assert kept.ema is not None
    assert kept.average is kept.ema.model


def test_a_warming_average_follows_the_first_weights_closely_and_counts_steps_from_the_first() -> None:
    weights = [stepped(Processes(), steps=steps).model.state_dict() for steps in range(7)]
    average = weights[0]
    for step, current in enumerate(weights[1:]):
        decay = min((1 + step) / (10 + step), 0.3)
        average = {name: decay * average[name] + (1 - decay) * current[name] for name in average}
    warming = stepped(Processes(), replace(SETTINGS, ema_decay=0.3, ema_warmup=True), steps=6)
    assert warming.average is not None
    for name, tensor in warming.average.state_dict().items():
        torch.testing.assert_close(tensor, average[name], rtol=0, atol=1e-6)


def test_frozen_weights_are_left_alone() -> None:
    model = network()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    step = TrainingStep(Regression(), model, replace(SETTINGS, weight_decay=0.5), Processes(), CPU)
    indices, flips = EpochSampler(COUNT, 8, 0).batch(0)
    step(step.task.fetch(indices, flips))
    assert torch.equal(model[0].weight, before)
    assert not torch.equal(model[2].weight, network()[2].weight)


def test_the_module_is_sent_to_its_device_and_put_into_training_mode() -> None:
    class Sent(nn.Linear):
        def to(self, device: torch.device) -> Sent:  # type: ignore[override]
            self.device = device
            return self

    model = Sent(5, 5).eval()
    step = TrainingStep(Regression(), model, SETTINGS, Processes(), CPU)
    assert model.device is step.device is CPU
    assert model.training
    assert step.network is step.model is model


def test_a_loss_may_be_of_another_dtype_than_the_weights() -> None:
    class Precise(Regression):
        def losses(self, *arguments: Any) -> dict[str, Tensor]:
            return {name: value.double() for name, value in super().losses(*arguments).items()}

    assert_same(stepped(Processes(), task=Precise()).model, stepped(Processes()).model, 1e-6)

"""Which optimiser has which weight, what a step of Muon is, and that a gradient that is not finite moves nothing."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_task import COUNT, SETTINGS, Recorded, Regression, assert_same, deep_network
from two_processes import in_two_processes

from sfd_cli.data.order import EpochSampler
from sfd_cli.distributed.processes import Processes
from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig
from sfd_cli.training.checkpoints import TrainingState
from sfd_cli.training.optimizers import optimizers_of, take_step
from sfd_cli.training.settings import LoopSettings
from sfd_cli.training.sharding import collected
from sfd_cli.training.step import TrainingStep

CPU = torch.device("cpu")
MUON = replace(
    SETTINGS, optimizer="muon", muon_learning_rate=0.05, weight_decay=0.1, beta2=0.95, ema_decay=None, warmup_steps=2
)
FACTORS = [0.5, 1.0, 1.0, 1.0]
"""Learning rates of the first steps over their peaks, under a warmup of two."""
INNER = {"blocks.0.weight", "blocks.2.weight"}


def prepared(settings: LoopSettings = MUON, processes: Processes | None = None, **task: Any) -> TrainingStep:
    return TrainingStep(Regression(**task), deep_network(), settings, processes or Processes(), CPU)


def advance(step: TrainingStep, steps: int) -> TrainingStep:
    sampler = EpochSampler(COUNT, step.settings.batch_size, step.settings.seed)
    for number in range(step.number, step.number + steps):
        indices, flips = sampler.batch(number)
        step(step.task.fetch(indices[step.share], flips[step.share]))
    return step


def orthogonalised(matrix: Tensor) -> Tensor:
    """Five Newton-Schulz iterations X <- 3.4445 X - 4.775 (X X^T) X + 2.0315 (X X^T)^2 X in float64."""
    x = matrix.double() / matrix.double().norm()
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x - 4.775 * square @ x + 2.0315 * square @ square @ x
    return x


def test_the_matrices_of_attention_mlp_and_modulation_are_muons_and_all_else_is_adamws() -> None:
    config = LightningDiTConfig(2, 5, 3, 2, width=16, depth=2, heads=2, repa_depth=1, repa_width=8, feature_width=6)
    model = LightningDiT(config)
    model.class_embedding.weight.requires_grad_(False)
    names = {id(weight): name for name, weight in model.named_parameters()}
    adamw, muon = ([names[id(w)] for w in found.param_groups[0]["params"]] for found in optimizers_of(model, MUON))
    inside = ["modulation", "attention.qkv", "attention.out", "mlp.gate_up", "mlp.down"]
    assert muon == [f"blocks.{block}.{layer}.weight" for block in (0, 1) for layer in inside]
    assert {*adamw, *muon, "class_embedding.weight"} == set(names.values())
    assert len(adamw) + len(muon) + 1 == len(names)
    (alone,) = optimizers_of(model, replace(MUON, optimizer="adamw"))
    assert [names[id(weight)] for weight in alone.param_groups[0]["params"]] == [
        name for name in names.values() if name != "class_embedding.weight"
    ]


def test_steps_of_muon_are_those_of_an_independent_newton_schulz_iteration() -> None:
    """Momentum 0.95 with Nesterov's look ahead, orthogonalised, times the square root of rows over columns above 1."""
    model = deep_network()
    optimizers, generator = optimizers_of(model, MUON), torch.Generator().manual_seed(1)
    inner = {name: weight for name, weight in model.named_parameters() if name in INNER}
    buffers = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in inner.items()}
    for factor in FACTORS:
        expected, far = {}, {}
        for name, weight in inner.items():
            weight.grad = torch.randn(weight.shape, generator=generator)
            buffers[name] = 0.95 * buffers[name] + 0.05 * weight.grad.double()
            rows, columns = weight.shape
            direction = orthogonalised(0.05 * weight.grad.double() + 0.95 * buffers[name])
            moved = 0.05 * factor * max(1.0, rows / columns) ** 0.5 * direction
            expected[name] = weight.detach().double() * (1 - 0.05 * factor * 0.1) - moved
            far[name] = float(moved.norm())
        take_step(optimizers, factor, torch.tensor(False))
        for name, weight in inner.items():
            assert weight.grad is None
            # The iteration runs in bfloat16 there.
            assert float((weight.detach().double() - expected[name]).norm()) < 0.03 * far[name]


def test_a_run_is_one_of_torchs_own_muon_and_adamw_in_a_plain_loop() -> None:
    """To the last bit: where a gradient has few directions, the iteration makes noise of the rounding of the others."""
    task, model = Recorded(), deep_network()
    found = advance(TrainingStep(task, deep_network(), MUON, Processes(), CPU), 4)
    weights, sampler = dict(model.named_parameters()), EpochSampler(COUNT, MUON.batch_size, MUON.seed)
    muon = torch.optim.Muon([weights[name] for name in weights if name in INNER], momentum=0.95, weight_decay=0.1)
    rest = [weights[name] for name in weights if name not in INNER]
    adamw = torch.optim.AdamW(rest, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    for number, factor in enumerate(FACTORS):
        indices, flips = (torch.from_numpy(part) for part in sampler.batch(number))
        points = task.points[indices] * torch.where(flips == 1, -1, 1)[:, None]
        ((model(points + task.drawn[number]) - points).square().mean() + 0.1).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        muon.param_groups[0]["lr"], adamw.param_groups[0]["lr"] = 0.05 * factor, 0.01 * factor
        for optimizer in (muon, adamw):
            optimizer.step()
            optimizer.zero_grad()
    assert_same(model, found.model)


def state_of(step: TrainingStep) -> dict[str, Tensor]:
    """Weights and momenta; of several processes the first has all momenta, the others their own."""
    state = TrainingState.of(step.number, step.model, None, *step.optimizers)
    momenta = collected(state.optimizer, step.processes)
    return {name: tensor.clone() for name, tensor in (state.model | momenta).items()}


@pytest.mark.parametrize("bad", [0, 3])
def test_a_gradient_that_is_not_finite_moves_neither_weights_nor_momenta(bad: int) -> None:
    step = advance(prepared(spoil=range(bad, bad + 1)), bad)
    before = state_of(step)
    after = state_of(advance(step, 1))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    moved = state_of(advance(step, 1))
    assert all(tensor.isfinite().all() for tensor in moved.values())
    assert not any(torch.equal(moved[name], before[name]) for name in INNER)


def test_the_state_of_both_optimisers_is_numbered_through_and_comes_back() -> None:
    trained = advance(prepared(), 3)
    state = copy.deepcopy(TrainingState.of(3, trained.model, None, *trained.optimizers))
    names = {f"{number}.{part}" for number in range(6) for part in ("exp_avg", "exp_avg_sq", "step")}
    assert state.optimizer.keys() == names | {"6.momentum_buffer", "7.momentum_buffer"}
    again = prepared()
    state.restore(again.model, None, *again.optimizers)
    again.number = 3
    whole, resumed = state_of(advance(trained, 3)), state_of(advance(again, 3))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_two_processes_have_one_momentum_and_stay_together(tmp_path: Path) -> None:
    def work(processes: Processes) -> list[dict[str, Tensor]]:
        step = prepared(replace(MUON, accumulate=2), processes)
        return [state_of(advance(step, steps)) for steps in (1, 3)]

    one = state_of(advance(prepared(), 1))
    first, second = in_two_processes(tmp_path, work)
    for name in ("6.momentum_buffer", "7.momentum_buffer"):
        torch.testing.assert_close(first[0][name], one[name], rtol=1e-4, atol=1e-7)
    assert all(torch.equal(first[1][name], tensor) for name, tensor in second[1].items())
    assert {"6.momentum_buffer", "7.momentum_buffer"} <= first[1].keys()
    assert second[1].keys() > dict(deep_network().named_parameters()).keys()

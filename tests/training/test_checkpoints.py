"""Checkpoints on disk: whole or absent, and never of broken weights."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refusal
from torch import nn

from sfd_cli.errors import StageFailure
from sfd_cli.training.checkpoints import Checkpoints, TrainingState


def trained(steps: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.99), fused=True)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(2, 4)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def state(step: int, ema: bool = True) -> TrainingState:
    model, optimizer = trained()
    return TrainingState.of(step, model, copy.deepcopy(model) if ema else None, optimizer)


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    store, saved = Checkpoints(tmp_path), state(5)
    store.save(saved)
    loaded = store.load_last()
    assert loaded is not None
    assert loaded.step == 5
    model, optimizer = trained(0)
    average = nn.Linear(4, 4)
    loaded.restore(model, average, optimizer)
    again = TrainingState.of(5, model, average, optimizer)
    for part in ("model", "ema", "optimizer"):
        before, after = getattr(saved, part), getattr(again, part)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_equal_states_give_equal_bytes(tmp_path: Path) -> None:
    for run in ("a", "b"):
        Checkpoints(tmp_path / run).save(state(5))
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        first, second = ((tmp_path / run / "step-0000005" / name).read_bytes() for run in ("a", "b"))
        assert first == second


def test_the_last_and_the_previous_are_kept(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path)
    for step in (10, 20, 30):
        store.save(state(step))
    assert store.steps() == [20, 30]
    store.keep(1)
    assert store.steps() == [30]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip(path: Path) -> None:
    """One wrong bit in a tensor, which safetensors reads without a word."""
    content = bytearray(path.read_bytes())
    content[-3] ^= 64
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize(
    "damage", [cut, flip, Path.unlink, lambda path: path.write_bytes(b"")], ids=["cut", "flip", "gone", "empty"]
)
def test_a_damaged_checkpoint_is_named_and_the_previous_one_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Any
) -> None:
    store = Checkpoints(tmp_path)
    store.save(state(10))
    store.save(state(20))
    damage(tmp_path / "step-0000020" / name)
    loaded = store.load_last()
    assert loaded is not None
    assert loaded.step == 10
    assert re.search(r"passing over a damaged checkpoint .*step-0000020", capsys.readouterr().err)


def test_a_checkpoint_half_written_by_a_killed_run_is_not_seen_and_goes_with_the_next(tmp_path: Path) -> None:
    half = tmp_path / ".step-0000020.tmp"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    store = Checkpoints(tmp_path)
    assert store.load_last() is None
    store.save(state(30, ema=False))
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000030"]


def test_weights_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path)
    store.save(state(10))
    broken = state(20)
    broken.model["weight"][0, 0] = torch.inf
    with refusal(store.path(20), 20, kind=StageFailure):
        store.save(broken)
    assert store.steps() == [10]


def test_a_checkpoint_from_before_there_were_checksums_is_read(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path)
    store.save(state(10))
    (store.path(10) / "checksums.json").unlink()
    assert store.load(10).step == 10
    assert store.is_whole(10)
    assert not store.is_whole(20)

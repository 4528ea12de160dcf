"""A training in which one process is stuck ends in time by its name; one that writes or draws for long goes on."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from together import Member, kill, start
from torch import Tensor, nn
from training_task import COUNT, SETTINGS, Regression, network

from sfd_cli.data.order import EpochSampler
from sfd_cli.distributed.processes import Processes
from sfd_cli.training.checkpoints import Checkpoints
from sfd_cli.training.fit import fit

PATIENCE = 2.0
Train = Callable[..., list[Member]]


class Stuck(Regression):
    """A task whose images do not come after the seventh step, as from a file system that hangs."""

    def fetch(self, indices: np.ndarray, flips: np.ndarray) -> dict[str, Tensor]:
        if self.fetched == 7:
            time.sleep(600)
        return super().fetch(indices, flips)


@pytest.fixture
def train(tmp_path: Path) -> Iterator[Train]:
    """Trains in two processes; kills what is left of them."""
    members: list[Member] = []

    def begin(stuck: bool = False, slow: Callable[[int, nn.Module], None] = lambda step, model: None) -> list[Member]:
        def work(processes: Processes) -> None:
            task = Stuck() if stuck and processes.rank == 1 else Regression()
            settings = replace(SETTINGS, clip_norm=None)
            sampler = EpochSampler(COUNT, settings.batch_size, settings.seed)
            places = (tmp_path / "checkpoints", tmp_path / "log", torch.device("cpu"), "test")
            fit(task, network(), sampler, settings, *places, on_step=[slow])

        members.extend(start(tmp_path, work, SFD_PATIENCE=str(PATIENCE)))
        return members

    yield begin
    kill(members)


def test_a_process_whose_images_do_not_come_is_named_and_the_last_checkpoint_is_whole(
    train: Train, tmp_path: Path
) -> None:
    code, said = train(stuck=True)[0].end()
    assert code == 1
    assert f"sfd: error: process 1 ({socket.gethostname()}) of 2: no step for 2 s" in said
    assert said.count("error:") == 1
    state = Checkpoints(tmp_path / "checkpoints").load_last()
    assert state is not None
    assert state.step == 5


def test_what_the_first_process_does_between_steps_may_take_longer(train: Train, tmp_path: Path) -> None:
    def slow(step: int, model: nn.Module) -> None:
        if step == 8:
            time.sleep(3 * PATIENCE)

    assert [member.end()[0] for member in train(slow=slow)] == [0, 0]
    assert Checkpoints(tmp_path / "checkpoints").steps()[-1] == SETTINGS.steps

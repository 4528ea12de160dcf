"""Processes that do not work on the same files: nothing is moved or written, and a sentence names who has others."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from produced import aside, writing
from produced import recipe as recipe_of
from produced import run as run_alone
from together import Member, kill, start

from sfd_cli import files
from sfd_cli.artifacts.produce import produce
from sfd_cli.artifacts.recipe import Facts, Recipe
from sfd_cli.cli import terminal
from sfd_cli.distributed.processes import Processes
from sfd_cli.errors import UserError

HOST = socket.gethostname()


@pytest.fixture
def members() -> Iterator[list[Member]]:
    started: list[Member] = []
    yield started
    kill(started)


def hasty(rank: int) -> None:
    files.DIRECTORY_LAG, terminal.PATIENCE = 1.0, 2


def make(processes: Processes, loaded: object) -> Facts:
    raise AssertionError("nothing is to be made")


def untouched(root: Path) -> bool:
    """Whether the artifact of before is all that is there, beside its lock."""
    return {path.name for path in root.iterdir() if path.is_dir()} == {"artifact", "metrics"} and not aside(root)


@pytest.mark.parametrize("other", ["input", "setting"])
def test_another_input_of_one_process_is_named_before_anything_is_moved(
    other: str, tmp_path: Path, members: list[Member]
) -> None:
    run_alone(tmp_path / "root", writing("old"), seed=0)

    def work(processes: Processes) -> None:
        second = processes.rank == 1
        settings = {"seed": 2 if second and other == "setting" else 1}
        inputs = {"latents": "b" if second and other == "input" else "a"}
        produce(Recipe("demo-stage", tmp_path / "root/artifact", settings, inputs), lambda _: None, make)

    members += start(tmp_path, work, prepare=hasty)
    code, said = members[0].end()
    named = "input latents" if other == "input" else "seed"
    assert code == 1
    assert f"sfd: error: sfd demo-stage: process 1 ({HOST}) has other {named} before it" in said
    assert members[1].end() == (1, "")
    assert untouched(tmp_path / "root")


def test_what_one_process_cannot_load_costs_nothing(tmp_path: Path, members: list[Member]) -> None:
    run_alone(tmp_path / "root", writing("old"), seed=0)

    def load(processes: Processes) -> None:
        if processes.rank == 1:
            raise UserError("data/latents", "is not here")

    def work(processes: Processes) -> None:
        produce(recipe_of(tmp_path / "root", seed=1), load, make)

    members += start(tmp_path, work, prepare=hasty)
    assert members[1].end() == (2, f"sfd: error: process 1 ({HOST}): data/latents: is not here\n")
    code, said = members[0].end()
    assert code == 1
    assert "sfd: error: process 1" in said
    assert untouched(tmp_path / "root")


def test_folders_that_are_not_the_same_one_are_refused_before_anything_is_moved(
    tmp_path: Path, members: list[Member]
) -> None:
    for rank in range(2):
        run_alone(tmp_path / str(rank), writing("old"), seed=0)

    def work(processes: Processes) -> None:
        produce(recipe_of(tmp_path / str(processes.rank), seed=1), lambda _: None, make)

    members += start(tmp_path, work, prepare=hasty)
    # As where every machine has a disk of its own: what the first one writes is not there.
    code, said = members[0].end()
    assert code == 1
    assert f"sfd: error: {tmp_path / '1'}: process 1 ({HOST}) does not see there" in said
    assert untouched(tmp_path / "0")
    assert untouched(tmp_path / "1")

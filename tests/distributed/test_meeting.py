"""Processes that do not all come, do not see each other, or were not told where to meet: a sentence, in time."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch.distributed as dist
from refusals import refusal
from together import Member, free_port, kill, start

from sfd_cli.cli import terminal
from sfd_cli.distributed import meeting
from sfd_cli.distributed.processes import Processes

HOST = socket.gethostname()


def nothing(processes: Processes) -> None:
    """Meet and leave."""


def hasty(rank: int) -> None:
    meeting.MEETING, terminal.PATIENCE = 2.0, 2


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., list[Member]]]:
    members: list[Member] = []

    def begun(work: Callable[[Processes], None], **options: object) -> list[Member]:
        members.extend(start(tmp_path, work, **options))  # type: ignore[arg-type]
        return members

    yield begun
    kill(members)


def test_who_has_not_come_is_named(begin: Callable[..., list[Member]]) -> None:
    first, second = begin(nothing, ranks=(0, 2), count=4, prepare=hasty)
    code, said = first.end()
    assert code == 1
    assert "sfd: error: process 1, 3 of 4: not here after 2 s" in said
    assert "Traceback" not in said
    assert second.end()[0] != 0


def test_a_place_where_nobody_is_is_told_in_time(begin: Callable[..., list[Member]]) -> None:
    began = time.monotonic()
    (member,) = begin(nothing, ranks=(1,), prepare=hasty)
    code, said = member.end()
    assert code == 2
    assert time.monotonic() - began < 30
    assert f"process 1 ({HOST}): 127.0.0.1:" in said
    assert "the processes cannot meet there" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("answer", ["fails", "hangs"])
def test_processes_that_met_and_do_not_see_each_other_are_told_of_the_interface(
    answer: str, begin: Callable[..., list[Member]]
) -> None:
    def prepare(rank: int) -> None:
        def connect(*_: object, **__: object) -> None:
            if answer == "hangs":
                time.sleep(600)
            raise RuntimeError("Gloo connectFullMesh failed with Connection refused\nand more")

        hasty(rank)
        dist.init_process_group = connect

    code, said = begin(nothing, prepare=prepare)[0].end()
    assert code == 2
    assert said.count("sfd: error: the network: processes that met at 127.0.0.1:") == 1
    assert "GLOO_SOCKET_IFNAME" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "change",
    [{"RANK": ""}, {"MASTER_ADDR": ""}, {"WORLD_SIZE": "two"}, {"MASTER_PORT": "99999"}, {"RANK": "2"}],
    ids=str,
)
def test_variables_that_do_not_tell_all_are_refused(change: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())} | change
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with refusal("WORLD_SIZE", "=".join(*change.items()), "torchrun"):
        Processes.join()


def test_what_one_process_has_otherwise_before_it_is_named_once(begin: Callable[..., list[Member]]) -> None:
    def work(processes: Processes) -> None:
        processes.require_same("sfd train", {"input latents": "a", "seed": 1})
        processes.require_same("sfd train", {"input latents": "ab"[processes.rank], "seed": 1})

    first, second = begin(work, prepare=hasty)
    assert first.end() == (
        1,
        f"sfd: error: sfd train: process 1 ({HOST}) has other input latents before it than the first process;"
        " give all machines the same files, by a file system that they share\n",
    )
    assert second.end() == (1, "")
    assert os.environ.get("RANK") is None


@pytest.mark.parametrize("last", [0, 1])
def test_what_processes_before_have_left_in_torchruns_store_is_not_taken_for_the_others(
    last: int, begin: Callable[..., list[Member]]
) -> None:
    """As after `--max-restarts`: PyTorch's own meeting takes dead processes' addresses then, and waits for ever."""
    port = free_port()
    keeper = dist.TCPStore("127.0.0.1", port, None, True, wait_for_workers=False)
    variables = {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for _ in range(2):

        def late(rank: int) -> None:
            hasty(rank)
            time.sleep(0.5 * (rank == last))  # so that the other finds what was left

        assert [member.end() for member in begin(nothing, prepare=late, **variables)[-2:]] == [(0, ""), (0, "")]
    assert keeper.check(["meeting/word/1"])

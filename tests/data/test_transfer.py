"""What goes to a device and back: in which order, and what waits for what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sfd_cli.data import transfer
from sfd_cli.data.transfer import fetching, host_buffer, one_behind, sent

CPU = torch.device("cpu")


def test_each_is_fetched_once_the_next_is_begun() -> None:
    log: list[str] = []

    def begun() -> Iterator[Callable[[], int]]:
        for number in range(3):
            log.append(f"begin {number}")
            yield lambda number=number: log.append(f"fetch {number}") or number  # type: ignore[func-returns-value, misc]

    assert list(one_behind(begun())) == [0, 1, 2]
    assert log == ["begin 0", "begin 1", "fetch 0", "begin 2", "fetch 1", "fetch 2"]
    assert list(one_behind(iter(()))) == []


def test_on_the_machine_itself_nothing_is_copied() -> None:
    values = torch.arange(6.0)
    assert sent(values, CPU) is values
    assert np.shares_memory(fetching({"a": values}, CPU)()["a"], values.numpy())
    buffer = host_buffer((2, 3), torch.uint8, CPU)
    assert (buffer.shape, buffer.dtype, buffer.is_pinned()) == ((2, 3), torch.uint8, False)


class Imitated:
    """A tensor of a device with pinned memory, which writes down what is done with it."""

    def __init__(self, log: list[str], pinned: bool = False) -> None:
        self.log, self.pinned = log, pinned

    def is_pinned(self) -> bool:
        return self.pinned

    def pin_memory(self) -> Imitated:
        self.log.append("pin")
        return Imitated(self.log, pinned=True)

    def to(self, where: object, non_blocking: bool = False) -> Imitated:
        self.log.append(f"to {where}, {'not waiting' if non_blocking else 'waiting'}, {self.pinned}")
        return self

    def numpy(self) -> str:
        self.log.append("read")
        return "array"


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []

    class Event:
        def record(self, stream: str) -> None:
            found.append(f"mark {stream}")

        def synchronize(self) -> None:
            found.append("wait for the mark")

    module = SimpleNamespace(Event=Event, current_stream=lambda device: f"stream of {device}")
    kind: Any = SimpleNamespace(pinned=True, module=module)
    monkeypatch.setattr(transfer, "kind_of", lambda device: kind)
    return found


def test_a_device_copies_by_itself_and_only_from_pinned_memory(log: list[str]) -> None:
    device: Any = "gpu"
    sent(Imitated(log), device)  # type: ignore[arg-type]
    sent(Imitated(log, pinned=True), device)  # type: ignore[arg-type]
    assert log == ["pin", "to gpu, not waiting, True", "to gpu, not waiting, True"]


def test_what_is_fetched_is_waited_for_up_to_its_mark_and_read_after_that(log: list[str]) -> None:
    device: Any = "gpu"
    arrays = fetching({"a": Imitated(log), "b": Imitated(log)}, device)  # type: ignore[dict-item]
    assert log == ["to cpu, not waiting, False"] * 2 + ["mark stream of gpu"]
    log.clear()
    assert set(arrays()) == {"a", "b"}
    assert log == ["wait for the mark", "read", "read"]

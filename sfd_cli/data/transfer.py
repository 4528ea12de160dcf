"""What goes between the machine's memory and a device's without either of them waiting for the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from sfd_cli.devices import kind_of

T = TypeVar("T")


def host_buffer(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory of the machine to fill and then to send to a device: pinned where that copies from it by itself."""
    return torch.empty(shape, dtype=dtype, pin_memory=kind_of(device).pinned)


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Values of the machine on the device, or themselves where that is the machine; the copy may go on after this.

    What is not in pinned memory is copied there first: from elsewhere a device copies only once its work is done.
    """
    if not kind_of(device).pinned:
        return values.to(device)
    return (values if values.is_pinned() else values.pin_memory()).to(device, non_blocking=True)


def fetching(tensors: Mapping[str, Tensor], device: torch.device) -> Callable[[], dict[str, np.ndarray]]:
    """Begin to copy tensors of a device to the machine, behind the work that the device has before it now.

    Returns:
        What waits for the copies, but not for work that the device is given after them, and gives them.
    """
    kind = kind_of(device)
    copies = {name: tensor.to("cpu", non_blocking=kind.pinned) for name, tensor in tensors.items()}
    done = kind.module.Event() if kind.pinned else None
    if done is not None:
        done.record(kind.module.current_stream(device))

    def arrays() -> dict[str, np.ndarray]:
        if done is not None:
            done.synchronize()
        return {name: copy.numpy() for name, copy in copies.items()}

    return arrays


def one_behind(begun: Iterable[Callable[[], T]]) -> Iterator[T]:
    """What each of these gives, asked for only once the next one is begun, so that a device always has work."""
    waiting: Callable[[], T] | None = None
    for following in begun:
        if waiting is not None:
            yield waiting()
        waiting = following
    if waiting is not None:
        yield waiting()

"""Running means of the losses, kept on the device so that no step waits for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sfd_cli.processes import Processes


@dataclass(frozen=True)
class Reading:
    """What happened since the last reading.

    Attributes:
        means: of every quantity over the steps that were not skipped; empty where all were.
        skipped: steps skipped for a gradient that was not finite.
        longest: most skipped steps in a row, those before the last reading included.
    """

    means: dict[str, float]
    skipped: int
    longest: int


class RunningMeans:
    """Sums quantities step by step, leaving skipped steps out, and counts those."""

    def __init__(self, device: torch.device, processes: Processes) -> None:
        self._processes = processes
        self._names: tuple[str, ...] = ()
        self._sums = torch.zeros(0, device=device)
        # Counted steps, skipped steps, skipped in a row until now, and most in a row.
        self._counts = torch.zeros(4, device=device)

    def add(self, values: Mapping[str, Tensor], skipped: Tensor) -> None:
        """Take the scalars of one step, on the device; `skipped` is a scalar bool beside them."""
        if not self._names:
            self._names = tuple(values)
            self._sums = self._sums.new_zeros(len(values))
        stacked = torch.stack([values[name].float() for name in self._names])
        self._sums += torch.where(skipped, 0.0, stacked)
        counted, left_out, in_a_row, longest = self._counts.unbind()
        in_a_row = (in_a_row + 1) * skipped
        self._counts = torch.stack((counted + ~skipped, left_out + skipped, in_a_row, torch.maximum(longest, in_a_row)))

    def read(self) -> Reading:
        """Wait for the device, average over the processes, and start over."""
        packed = self._processes.mean(torch.cat((self._sums, self._counts))).tolist()
        sums, (counted, skipped, in_a_row, longest) = packed[:-4], packed[-4:]
        self._sums = torch.zeros_like(self._sums)
        self._counts = self._counts.new_tensor([0, 0, in_a_row, in_a_row])
        means = {name: total / counted for name, total in zip(self._names, sums, strict=True)} if counted else {}
        return Reading(means, round(skipped), round(longest))

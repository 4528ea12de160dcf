"""Running means of the losses, kept on the device so that no step waits for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from sfd_cli.distributed.processes import Processes


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


class Sums(BaseModel):
    """What was gathered since the last reading, as a checkpoint keeps it; means over the processes.

    Attributes:
        sums: of every quantity over the steps that were not skipped.
        counts: of steps that were not skipped, skipped, skipped in a row until now, and most in a row.
    """

    model_config = ConfigDict(ser_json_inf_nan="constants")

    sums: dict[str, float] = {}
    counts: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


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

    @property
    def so_far(self) -> Sums:
        """What would be read now; waits for the device, and is asked for in every process."""
        packed = self._processes.mean(torch.cat((self._sums, self._counts))).tolist()
        return Sums(sums=dict(zip(self._names, packed[:-4], strict=True)), counts=tuple(packed[-4:]))

    def go_on(self, found: Sums) -> None:
        """Take up what a run had gathered when it was stopped."""
        self._names = tuple(found.sums)
        self._sums = self._counts.new_tensor(list(found.sums.values()))
        self._counts = self._counts.new_tensor(found.counts)

    def read(self) -> Reading:
        """Wait for the device, average over the processes, and start over."""
        found = self.so_far
        counted, skipped, in_a_row, longest = found.counts
        self._sums = torch.zeros_like(self._sums)
        self._counts = self._counts.new_tensor([0, 0, in_a_row, in_a_row])
        means = {name: total / counted for name, total in found.sums.items()} if counted else {}
        return Reading(means, round(skipped), round(longest))

"""TensorBoard: event files that are made of the TSVs, so that they have the same rows and no others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import yaml
from PIL import Image

from sfd_cli.trackers.tracker import Entry, Run, Tracker

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

EVENTS = "events.out.tfevents.*"


class _EventFile:
    """One event file in `trackers/tensorboard/KEY-ID`. TensorBoard keeps numbers as float32.

    A run that goes on has its file made anew from the rows that are left: nothing has to be rewound in it, and a row
    that a killed run had written and not yet sent is there. The first event tells a TensorBoard that is looking to
    forget what it has of the run.
    """

    def __init__(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run.folder / "tensorboard" / f"{run.key}-{run.id}"
        for earlier in folder.glob(EVENTS):
            earlier.unlink()
        self._writer: SummaryWriter = SummaryWriter(str(folder), purge_step=0)
        listed = yaml.safe_dump(dict(run.settings), sort_keys=False)
        self._writer.add_text("settings", "\n".join(f"    {line}" for line in listed.splitlines()), 0)

    def log(self, entries: Sequence[Entry]) -> None:
        """Write whole steps, ascending."""
        for entry in entries:
            for name, value in entry.values.items():
                self._writer.add_scalar(name, value, entry.step)
            for name, path in entry.pictures.items():
                with Image.open(path) as picture:
                    pixels = np.asarray(picture.convert("RGB"))
                self._writer.add_image(name, pixels, entry.step, dataformats="HWC")
        self._writer.flush()

    def scores(self, step: int, values: Mapping[str, float]) -> None:
        """Write the scores."""
        for name, value in values.items():
            self._writer.add_scalar(f"scores/{name}", value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


TENSORBOARD = Tracker(_EventFile, "tensorboard")

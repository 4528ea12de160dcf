"""Averaged weights along a training, in the model's own folder: each is a model that is accepted wherever one is.

They belong to the model's artifact, so that DVC keeps them with it, `sfd verify` reads them, and a model that is put
aside takes them along. Each has checksums of its own, since it may be used while the training goes on.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sfd_cli.checksums import put_in_place
from sfd_cli.formats.model_folder import dit_weights, save_model
from sfd_cli.networks.lightning_dit import LightningDiT

MILESTONES = "milestones"
Write = Callable[[Path, LightningDiT, Mapping[str, Any]], None]
"""Writes a model folder of a network, with further keys of its `config.json`."""
_NAME = re.compile(r"\d{7,}")


def save_averaged(folder: Path, network: LightningDiT, description: Mapping[str, Any]) -> None:
    """Write all weights of a transformer, as averaged ones."""
    save_model(folder, type(network).__name__, network.config, dit_weights(network, "ema"), description)


class Milestones:
    """The model folders `milestones/NNNNNNN` of a transformer, by the steps that it had taken.

    Args:
        folder: of the transformer.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder) / MILESTONES

    def steps(self) -> list[int]:
        """The steps of all milestones, ascending."""
        return sorted(int(path.name) for path in self.folder.glob("*") if _NAME.fullmatch(path.name))

    def path(self, step: int) -> Path:
        """The folder of the milestone after `step` steps."""
        return self.folder / f"{step:07d}"

    def save(
        self, step: int, network: LightningDiT, description: Mapping[str, Any], write: Write = save_averaged
    ) -> None:
        """Keep the averaged `network` after `step` steps; a kill leaves none of it or all.

        Args:
            step: steps taken.
            network: the transformer.
            description: further keys of its `config.json`, those of the finished model.
            write: writes what is kept of it.
        """
        target = self.path(step)
        temporary = self.folder / f".{target.name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        write(temporary, network, description)
        put_in_place(temporary, target)

    def forget_after(self, step: int) -> None:
        """Remove the milestones of steps that are about to be taken again."""
        for later in self.steps():
            if later > step:
                shutil.rmtree(self.path(later))

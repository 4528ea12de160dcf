"""When milestones are kept, and what is said of those that cannot be had any more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sfd_cli.artifacts.milestones import Milestones, Write, save_averaged
from sfd_cli.config import DiT
from sfd_cli.messages import say
from sfd_cli.networks.lightning_dit import LightningDiT


@dataclass(frozen=True)
class MilestoneKeeper:
    """Keeps the averaged weights every `every` steps; 0: never. `description` is that of the finished model."""

    milestones: Milestones
    every: int
    description: Mapping[str, Any]
    write: Write = save_averaged

    def __call__(self, step: int, network: nn.Module) -> None:
        """Keep them if it is time."""
        if is_milestone(step, self.every):
            assert isinstance(network, LightningDiT)
            self.milestones.save(step, network, self.description, self.write)


def is_milestone(step: int, every: int) -> bool:
    """Whether one is kept after so many steps."""
    return bool(every) and step % every == 0


def kept_milestones(folder: Path, section: DiT, name: str) -> dict[str, Any]:
    """How many the finished model in `folder` has, for the summary of its training.

    Those that its section `name` asks for and that it lacks are told: its steps were taken without.
    """
    milestones = Milestones(folder)
    kept, every = milestones.steps(), section.keep_every
    wanted = range(every, section.steps + 1, every) if every else ()
    if missing := [step for step in wanted if step not in kept]:
        one = len(missing) == 1
        steps = f"step {missing[0]}" if one else f"{len(missing)} steps from {missing[0]} to {missing[-1]}"
        say(
            f"{folder} has no milestones of {steps}, for it was trained there without {name}.keep_every {every};"
            f" move it away to train it again with them"
        )
    return {"milestones": f"{len(kept)} in {milestones.folder}"} if kept else {}

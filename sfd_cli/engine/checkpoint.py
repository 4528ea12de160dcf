"""Training state on disk: a folder per checkpoint, whole or absent, the last two kept."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sfd_cli.errors import StageFailure
from sfd_cli.files import fsync_folder

KEPT = 2
_NAME = re.compile(r"step-(\d{7,})")


@dataclass(frozen=True)
class TrainingState:
    """What training goes on from. The order of images and all noise follow from the seed and the step.

    Attributes:
        step: optimiser steps done.
        model: weights by name.
        ema: averaged weights by name, None where none are kept.
        optimizer: the optimiser's own state dict.
    """

    step: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    optimizer: dict[str, Any]


class Checkpoints:
    """The checkpoints `step-NNNNNNN` of one run: `model.safetensors`, `ema.safetensors` and `state.pt` in each."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def steps(self) -> list[int]:
        """Steps there are checkpoints of, ascending."""
        names = (_NAME.fullmatch(path.name) for path in self.folder.glob("step-*"))
        return sorted(int(name.group(1)) for name in names if name)

    def path(self, step: int) -> Path:
        """Where the checkpoint of `step` is."""
        return self.folder / f"step-{step:07d}"

    def save(self, state: TrainingState) -> None:
        """Write a checkpoint and remove all but the last two.

        It is written under a temporary name, forced to the disk, and renamed, so a kill leaves none or a whole one.

        Raises:
            StageFailure: a weight is not finite; nothing is written.
        """
        _require_finite([*state.model.values(), *(state.ema or {}).values()], state.step)
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(leftover)
        target = self.path(state.step)
        temporary = self.folder / f".{target.name}.tmp"
        temporary.mkdir()
        _save_weights(state.model, temporary / "model.safetensors")
        if state.ema is not None:
            _save_weights(state.ema, temporary / "ema.safetensors")
        rest = {"step": state.step, "averaged": state.ema is not None, "optimizer": state.optimizer}
        torch.save(rest, temporary / "state.pt")
        for path in temporary.iterdir():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
        fsync_folder(temporary)
        # A checkpoint of this step can only be one that did not load.
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        fsync_folder(self.folder)
        self.keep(KEPT)

    def keep(self, count: int) -> None:
        """Remove all but the last `count` checkpoints."""
        for step in self.steps()[:-count]:
            shutil.rmtree(self.path(step))

    def load(self, step: int) -> TrainingState:
        """The checkpoint of `step`, on the CPU.

        Raises:
            ValueError: it is damaged or incomplete; says what is wrong with it.
        """
        folder = self.path(step)
        try:
            state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
            model = load_file(folder / "model.safetensors")
            ema = load_file(folder / "ema.safetensors") if state["averaged"] else None
            return TrainingState(int(state["step"]), model, ema, state["optimizer"])
        except (OSError, SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError) as error:
            raise ValueError(f"{folder}: {' '.join(str(error).split())[:200]}") from None

    def load_last(self) -> TrainingState | None:
        """The last checkpoint that can be read, or None where there is none; says which it had to pass over."""
        for step in reversed(self.steps()):
            try:
                return self.load(step)
            except ValueError as error:
                print(f"sfd: passing over a damaged checkpoint ({error})", file=sys.stderr, flush=True)
        return None


def restore(state: TrainingState, model: nn.Module, ema: nn.Module | None, optimizer: torch.optim.Optimizer) -> None:
    """Put a state into the objects that train."""
    model.load_state_dict(state.model)
    if ema is not None and state.ema is not None:
        ema.load_state_dict(state.ema)
    optimizer.load_state_dict(state.optimizer)


def _save_weights(weights: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, path)


def _require_finite(weights: list[Tensor], step: int) -> None:
    checks = [tensor.isfinite().all() for tensor in weights]
    if not bool(torch.stack(checks).all()):
        raise StageFailure(f"the weights after step {step} are not finite, so no checkpoint of them is written")

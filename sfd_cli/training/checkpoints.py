"""Training state on disk: a folder per checkpoint, whole or absent, the last two kept."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from sfd_cli.checksums import damaged_by_own, put_in_place
from sfd_cli.devices import kind_of
from sfd_cli.errors import StageFailure, UserError
from sfd_cli.messages import say
from sfd_cli.training.running_means import Sums
from sfd_cli.training.sharding import local, weights_of

KEPT = 2
MODEL, EMA, OPTIMIZER = (f"{name}.safetensors" for name in ("model", "ema", "optimizer"))
_NAME = re.compile(r"step-(\d{7,})")


@dataclass(frozen=True)
class TrainingState:
    """What training goes on from: the order of images and all noise follow from the seed and the step.

    Weights that are not trained are not part of it.

    `optimizer` is the per-parameter state by `<parameter's number>.<name>`, the numbers of a second optimiser going on
    after those of the first; their settings are the run's. Of several processes each has that of its own weights, until
    it is `collected`. `sums` are of the losses since they were last logged.
    """

    step: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    optimizer: dict[str, Tensor]
    sums: Sums = field(default_factory=Sums)

    @classmethod
    def of(
        cls, step: int, model: nn.Module, ema: nn.Module | None, *optimizers: Optimizer, sums: Sums | None = None
    ) -> TrainingState:
        """The state of objects that have trained `step` steps; its tensors are theirs, not copies."""
        frozen = _frozen(model)

        def weights(module: nn.Module) -> dict[str, Tensor]:
            return {name: tensor for name, tensor in module.state_dict().items() if name not in frozen}

        numbers = _numbers(optimizers)
        flat = {
            f"{numbers[id(weight)]}.{name}": tensor
            for optimizer in optimizers
            for weight, part in local(optimizer).state.items()
            for name, tensor in part.items()
        }
        return cls(step, weights(model), None if ema is None else weights(ema), flat, sums or Sums())

    @property
    def tensors(self) -> list[Tensor]:
        """All of it, but for the sums."""
        return [*self.model.values(), *(self.ema or {}).values(), *self.optimizer.values()]

    def on_host(self) -> TrainingState:
        """A copy in host memory, which training does not write to."""
        kinds = {tensor.device: kind_of(tensor.device) for tensor in self.tensors}

        def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: _on_host(tensor, kinds[tensor.device].pinned) for name, tensor in tensors.items()}

        ema = None if self.ema is None else copied(self.ema)
        state = replace(self, model=copied(self.model), ema=ema, optimizer=copied(self.optimizer))
        for device, kind in kinds.items():
            if kind.pinned:
                kind.module.synchronize(device)
        return state

    def restore(self, model: nn.Module, ema: nn.Module | None, *optimizers: Optimizer) -> None:
        """Put the state into objects like those it was of."""
        frozen = _frozen(model)
        for module, tensors in ((model, self.model), (ema, self.ema)):
            if module is not None and tensors is not None:
                rest = {name: tensor for name, tensor in module.state_dict().items() if name in frozen}
                module.load_state_dict(rest | tensors)
        parts: dict[int, dict[str, Tensor]] = {}
        for key, tensor in self.optimizer.items():
            number, _, name = key.partition(".")
            parts.setdefault(int(number), {})[name] = tensor
        numbers = _numbers(optimizers)
        for optimizer in map(local, optimizers):
            own = enumerate(numbers[id(weight)] for weight in weights_of(optimizer))
            state = {number: parts[everywhere] for number, everywhere in own if everywhere in parts}
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _frozen(model: nn.Module) -> set[str]:
    """The weights of a model that are not trained: it has them from elsewhere, and its average shares them."""
    return {name for name, weight in model.named_parameters() if not weight.requires_grad}


def _numbers(optimizers: Sequence[Optimizer]) -> dict[int, int]:
    """The number of every weight, by its id, whichever process has its state."""
    weights = (weight for optimizer in optimizers for weight in weights_of(optimizer))
    return {id(weight): number for number, weight in enumerate(weights)}


class _Facts(BaseModel):
    """What a checkpoint says beside its tensors; older ones had no `sums`."""

    step: int
    averaged: bool
    sums: Sums = Sums()


class Checkpoints:
    """The checkpoints `step-NNNNNNN` of one run: three sets of tensors in each, and no pickle."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def steps(self) -> list[int]:
        """The steps of all checkpoints, ascending."""
        names = (_NAME.fullmatch(path.name) for path in self.folder.glob("step-*"))
        return sorted(int(name.group(1)) for name in names if name)

    def path(self, step: int) -> Path:
        """The folder of the checkpoint of `step`."""
        return self.folder / f"step-{step:07d}"

    def save(self, state: TrainingState) -> None:
        """Write a checkpoint and remove all but the last two.

        Raises:
            StageFailure: a weight is not finite; nothing is written.
        """
        self.require_finite(state)
        self.write(state)

    def write(self, state: TrainingState) -> None:
        """Write a checkpoint of weights that are known to be finite, and remove all but the last two.

        It is written under a temporary name, forced to the disk, and renamed, so a kill leaves none or a whole one.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(leftover)
        target = self.path(state.step)
        temporary = self.folder / f".{target.name}.tmp"
        temporary.mkdir()
        _save(state.model, temporary / MODEL)
        if state.ema is not None:
            _save(state.ema, temporary / EMA)
        facts = _Facts(step=state.step, averaged=state.ema is not None, sums=state.sums)
        _save(state.optimizer, temporary / OPTIMIZER, {"state": facts.model_dump_json()})
        put_in_place(temporary, target)  # where a checkpoint of this step can only be one that did not load
        self.keep(KEPT)

    def keep(self, count: int) -> None:
        """Remove all but the last `count` checkpoints."""
        for step in self.steps()[:-count]:
            shutil.rmtree(self.path(step))

    def require_finite(self, state: TrainingState) -> None:
        """Check that a state is one to go on from.

        Raises:
            StageFailure: a weight is not finite.
        """
        weights = [*state.model.values(), *(state.ema or {}).values()]
        if not bool(torch.stack([tensor.isfinite().all() for tensor in weights]).all()):
            problem = f"is not written, because the weights after step {state.step} are not finite"
            raise StageFailure(self.path(state.step), problem, "a lower learning rate, clipping or fp32 may help")

    def load(self, step: int, is_checked: bool = False) -> TrainingState:
        """The checkpoint of `step`, on the CPU: mapped, so that processes of one machine have it in memory once.

        Args:
            step: which.
            is_checked: its checksums were found to be right, by another process; it is not read for them again.

        Raises:
            ValueError: it is damaged or incomplete; says what is wrong with it.
        """
        folder = self.path(step)
        try:
            for name, what in ({} if is_checked else damaged_by_own(folder)).items():  # older ones have no checksums
                raise ValueError(f"{name} {what}")
            with safe_open(folder / OPTIMIZER, "pt") as file:
                facts = _Facts.model_validate_json(file.metadata()["state"], strict=True)
            ema = load_file(folder / EMA) if facts.averaged else None
            return TrainingState(facts.step, load_file(folder / MODEL), ema, load_file(folder / OPTIMIZER), facts.sums)
        except (OSError, SafetensorError, UserError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder}: {' '.join(str(error).split())[:200]}") from None

    def is_whole(self, step: int) -> bool:
        """Whether the checkpoint of `step` is there and can be read."""
        try:
            self.load(step)
        except ValueError:
            return False
        return True

    def load_last(self) -> TrainingState | None:
        """The last checkpoint that can be read, or None; reports those that cannot."""
        for step in reversed(self.steps()):
            try:
                return self.load(step)
            except ValueError as error:
                say(f"passing over a damaged checkpoint ({error})")
        return None


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata)


def _on_host(tensor: Tensor, pinned: bool) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned).copy_(tensor.detach(), non_blocking=pinned)

"""What a caller sees of sampling while it goes on, as in diffusers: a progress bar, a call after each step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from sfd_cli.diffusion.solver import OnPoint
from sfd_cli.errors import UserError

LATENTS = "latents"
OnStepEnd = Callable[[Any, int, float, dict[str, Tensor]], Mapping[str, Tensor] | None]
"""(pipeline, step, T, tensors) -> tensors to go on with; see `require_tensors` for their names."""


class ProgressBar:
    """The progress bar of a pipeline, which its users configure as they do that of diffusers."""

    _bar_config: Mapping[str, Any] = {}

    def set_progress_bar_config(self, **config: Any) -> None:
        """Arguments of tqdm for the bars to come: `disable=True` for none, `desc`, `leave`, ..."""
        self._bar_config = config

    def progress_bar(self, iterable: Iterable[Any] | None = None, total: int | None = None) -> tqdm:
        """A bar over `iterable`, or over `total` steps."""
        return tqdm(iterable, **({"desc": "sampling", "unit": "step", "total": total} | dict(self._bar_config)))


@dataclass(frozen=True)
class StepWatch:
    """Tells a bar and a callback of every step of every batch; a `sampler.Watch`.

    Attributes:
        bar: moves on by one a step.
        callback: is called after every step with the wanted images of the batch, or None.
        pipeline: what it gets as its first argument.
    """

    bar: tqdm
    callback: OnStepEnd | None
    pipeline: Any

    def __call__(self, rows: list[int]) -> OnPoint:
        """What to call with the points of a batch of which `rows` are wanted."""
        points = 0

        def on_point(progress: float, x: Tensor) -> Tensor | None:
            nonlocal points
            points += 1
            if points == 1:  # the start is the end of no step
                return None
            self.bar.update()
            return None if self.callback is None else self._called(self.callback, points - 2, progress, x, rows)

        return on_point

    def _called(self, callback: OnStepEnd, step: int, progress: float, x: Tensor, rows: list[int]) -> Tensor | None:
        """The solution with the latents that the callback gave back, None where it left them as they were."""
        given = x[rows]
        answer = callback(self.pipeline, step, progress, {LATENTS: given})
        changed = given if answer is None else _answered(answer, given)
        if changed is given:
            return None
        x = x.clone()
        x[rows] = changed.to(x)
        return x


def require_tensors(names: Sequence[str]) -> None:
    """Check which tensors a callback asks for: there is one, `latents` (n, C, h, w), normalised.

    Raises:
        UserError: it asks for others.
    """
    unknown = [name for name in names if name != LATENTS]
    if unknown:
        raise UserError("callback_on_step_end_tensor_inputs", f"{unknown} cannot be had", f"use [{LATENTS!r}]")


def _answered(answer: Any, given: Tensor) -> Tensor:
    changed = answer.get(LATENTS, given) if isinstance(answer, Mapping) else answer
    if not isinstance(changed, Tensor) or changed.shape != given.shape:
        found = f"{tuple(changed.shape)}" if isinstance(changed, Tensor) else type(changed).__name__
        problem = f"gave back {found} instead of latents {tuple(given.shape)}"
        raise UserError("callback_on_step_end", problem, f"give back its last argument, or {{{LATENTS!r}: ...}}")
    if not bool(torch.isfinite(changed).all()):
        raise UserError("callback_on_step_end", "gave back latents that are not finite", "look at what it computes")
    return changed

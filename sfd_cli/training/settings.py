"""How to optimise: what the training loop takes, and where each of it stands in `params.yaml`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from sfd_cli.config import DiT, VAETraining
from sfd_cli.errors import SettingError
from sfd_cli.networks.precision import Precision, choose_precision


@dataclass(frozen=True)
class LoopSettings:
    """How to optimise; see the section `dit` of params.yaml for the units."""

    steps: int
    batch_size: int
    learning_rate: float
    checkpoint_every: int
    log_every: int
    seed: int
    accumulate: int = 1
    beta2: float = 0.999
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay: Literal["constant", "cosine"] = "constant"
    clip_norm: float | None = None
    ema_decay: float | None = None
    precision: Precision = "fp32"
    compile: bool = False

    def micro_batch(self, processes: int) -> int:
        """Images of one micro-batch of one of so many processes.

        Raises:
            SettingError: the batch cannot be split evenly.
        """
        parts = processes * self.accumulate
        if self.batch_size % parts:
            problem = f"{self.batch_size} cannot be split over {processes} processes of {self.accumulate} micro-batches"
            raise SettingError("batch_size", problem, f"make it a multiple of {parts}")
        return self.batch_size // parts


def learning_rate(settings: LoopSettings, step: int) -> float:
    """Learning rate of step `step`, counted from 0: linear warmup, then constant or half a cosine down to 0."""
    warmup = min((step + 1) / settings.warmup_steps, 1.0) if settings.warmup_steps else 1.0
    if settings.decay == "constant":
        return settings.learning_rate * warmup
    progress = max(step - settings.warmup_steps, 0) / max(settings.steps - settings.warmup_steps, 1)
    return settings.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * progress))


def transformer_loop(section: DiT, device: torch.device) -> LoopSettings:
    """How a diffusion transformer is optimised."""
    return _loop(
        section,
        accumulate=section.accumulate,
        beta2=section.beta2,
        weight_decay=section.weight_decay,
        clip_norm=section.clip_norm,
        ema_decay=section.ema_decay,
        precision=choose_precision(section.precision, device),
        compile=section.compile,
    )


def vae_loop(section: VAETraining) -> LoopSettings:
    """How a VAE is optimised: cosine decay after a warmup, gradients clipped to norm 1, no average."""
    return _loop(section, decay="cosine", clip_norm=1.0)


def _loop(section: DiT | VAETraining, **own: Any) -> LoopSettings:
    return LoopSettings(
        steps=section.steps,
        batch_size=section.batch_size,
        learning_rate=section.learning_rate,
        checkpoint_every=section.checkpoint_every,
        log_every=section.log_every,
        seed=section.seed,
        warmup_steps=section.warmup_steps,
        **own,
    )

"""How to optimise: what the training loop takes, and where each of it stands in `params.yaml`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from sfd_cli.config import DiT, SemVAE, VAETraining
from sfd_cli.config.accumulation import AUTO, least_micro_batches
from sfd_cli.errors import SettingError
from sfd_cli.networks.compilation import choose_compile
from sfd_cli.networks.precision import Precision, choose_precision


@dataclass(frozen=True)
class LoopSettings:
    """How to optimise; see the section `dit` of params.yaml for the units.

    `decay` is the fraction of the steps at the end over which the learning rate falls linearly to 0, or "cosine": half
    a cosine over all steps after the warmup. `rate_scales` has the learning rates of weights, by name, over that of all
    others. `accumulate` is the number of micro-batches, or, with a `granule`, the least number: there are as many more
    as the device's memory asks for, each a multiple of `granule` images.
    """

    steps: int
    batch_size: int
    learning_rate: float
    checkpoint_every: int
    log_every: int
    seed: int
    accumulate: int = 1
    granule: int | None = None
    optimizer: Literal["adamw", "muon"] = "adamw"
    muon_learning_rate: float = 0.02
    beta2: float = 0.999
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay: float | Literal["cosine"] = 0.0
    clip_norm: float | None = None
    ema_decay: float | None = None
    ema_warmup: bool = False
    precision: Precision = "fp32"
    compile: bool = False
    rate_scales: Mapping[str, float] = field(default_factory=dict)

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
    """Learning rate of AdamW in step `step`, counted from 0."""
    return settings.learning_rate * rate_factor(settings, step)


def rate_factor(settings: LoopSettings, step: int) -> float:
    """What part of their peaks learning rates are in step `step`, counted from 0.

    Linear warmup, 1, and down to 0, which the step after the last would have (warmup-stable-decay, arXiv 2404.06395; or
    half a cosine).
    """
    warmup = min((step + 1) / settings.warmup_steps, 1.0) if settings.warmup_steps else 1.0
    if settings.decay == "cosine":
        progress = max(step - settings.warmup_steps, 0) / max(settings.steps - settings.warmup_steps, 1)
        return warmup * 0.5 * (1 + math.cos(math.pi * progress))
    falling = settings.decay * settings.steps
    return warmup * (min((settings.steps - step) / falling, 1.0) if falling else 1.0)


def transformer_loop(section: DiT, device: torch.device) -> LoopSettings:
    """How a diffusion transformer is optimised.

    Raises:
        SettingError: this PyTorch has no such optimiser.
    """
    if section.optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        problem = f"'muon' needs PyTorch 2.9 or newer, and this is {torch.__version__}"
        raise SettingError("optimizer", problem, "update PyTorch, or use 'adamw'")
    return _loop(
        section,
        granule=_granule(section, section.dispersive_group if section.dispersive_weight else 1),
        optimizer=section.optimizer,
        muon_learning_rate=section.muon_learning_rate,
        decay=section.decay,
        beta2=section.beta2,
        weight_decay=section.weight_decay,
        clip_norm=section.clip_norm,
        ema_decay=section.ema_decay,
        ema_warmup=section.ema_warmup,
        precision=choose_precision(section.precision, device),
        compile=choose_compile(section.compile, device, section.steps),
    )


def vae_loop(section: VAETraining, device: torch.device) -> LoopSettings:
    """How a VAE is optimised: cosine decay after a warmup, gradients clipped to norm 1, no average."""
    precision = choose_precision(section.precision, device)
    compiled = isinstance(section, SemVAE) and choose_compile(section.compile, device, section.steps)
    granule = _granule(section, 1)
    return _loop(section, granule=granule, decay="cosine", clip_norm=1.0, precision=precision, compile=compiled)


def _granule(section: DiT | VAETraining, images: int) -> int | None:
    """So many images, where there are to be as many micro-batches as memory asks for."""
    return images if section.accumulate == AUTO else None


def with_precision(section: SemVAE, device: torch.device) -> SemVAE:
    """The section with what `precision: auto` is on this device, which is another result on another one."""
    if section.precision != "auto":
        return section
    return section.model_copy(update={"precision": choose_precision(section.precision, device)})


def _loop(section: DiT | VAETraining, **own: Any) -> LoopSettings:
    return LoopSettings(
        steps=section.steps,
        batch_size=section.batch_size,
        accumulate=least_micro_batches(section.accumulate),
        learning_rate=section.learning_rate,
        checkpoint_every=section.checkpoint_every,
        log_every=section.log_every,
        seed=section.seed,
        warmup_steps=section.warmup_steps,
        **own,
    )

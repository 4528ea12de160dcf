"""The reference fixtures of the diffusion transformers, and what computes their numbers here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from typing import Any
from unittest.mock import patch

import torch
from reference_files import descriptions, part
from torch import Tensor

from sfd_cli.diffusion import dormand_prince
from sfd_cli.diffusion.guidance import AutoGuidance, ClassifierFreeGuidance, GuidanceScale, VelocityField
from sfd_cli.diffusion.latents import LatentSpace
from sfd_cli.diffusion.schedule import AsynchronousSchedule
from sfd_cli.diffusion.solver import integrate
from sfd_cli.formats.reference_dit import dit_from_reference
from sfd_cli.networks.lightning_dit import LightningDiT

DELTA_T = {"sfd": 0.3, "sync": 0.0, "plain": 0.0}

EULER = {"solver": "euler", "grid": "one-span", "steps": 20}
DOPRI5 = {"solver": "dopri5", "grid": "one-span"}
SAMPLES: dict[str, tuple[dict[str, Any], tuple[str, float, float, float] | None]] = {
    "euler21": (EULER, None),
    "heun21": ({**EULER, "solver": "heun"}, None),
    "euler21_shift0.5": ({**EULER, "shift": 0.5}, None),
    "dopri5": (DOPRI5, None),
    "exact": ({"solver": "dopri5", "rtol": 1e-6, "atol": 1e-7}, None),
    "euler21_cfg1.5": (EULER, ("cfg", 1.5, 1.5, 0.0)),
    "euler21_cfg1.5_from0.3": (EULER, ("cfg", 1.5, 1.5, 0.3)),
    "euler21_autoguidance1.5": (EULER, ("auto", 1.5, 1.5, 0.0)),
    "dopri5_autoguidance1.5": (DOPRI5, ("auto", 1.5, 1.5, 0.0)),
    "euler21_autoguidance_sem1.2_tex2.0": (EULER, ("auto", 2.0, 1.2, 0.0)),
}
"""How `solve` makes a sample of the reference, and its guidance: kind, texture scale, semantic scale, from when."""

NOISY_STEP = 7
"""The attempted step of dit_sfd's `sample.dopri5`, counted from 1, whose estimated error is float32's rounding."""
NOISY_RATIO = 7.6225e-6
"""What the reference's run must have had there for its sample to come out."""


@dataclass(frozen=True)
class Reference:
    """One fixture file: networks in evaluation mode, and the reference's inputs and outputs."""

    model: LightningDiT
    guide: LightningDiT | None
    forward: dict[str, Tensor]
    loss: dict[str, Tensor]
    sample: dict[str, Tensor]
    schedule: AsynchronousSchedule

    @property
    def space(self) -> LatentSpace:
        return self.model.config.space

    def double(self) -> Reference:
        """The same model, noise and schedule, without the guide, in float64."""
        noise = self.sample["noise"].double()
        return replace(self, model=deepcopy(self.model).double(), guide=None, sample={**self.sample, "noise": noise})


@cache
def load(name: str) -> Reference:
    file = f"dit_{name}"
    described = descriptions(file)

    def network(which: str) -> LightningDiT:
        architecture = described[which]
        config, weights = dit_from_reference(
            part(file, f"{which}."), architecture["num_heads"], architecture.get("semantic_chans", 0)
        )
        module = LightningDiT(config)
        module.load_state_dict(weights)
        return module.eval().requires_grad_(False)

    return Reference(
        network("model"),
        network("guide") if "guide" in described else None,
        part(file, "forward."),
        part(file, "loss."),
        part(file, "sample."),
        AsynchronousSchedule(DELTA_T[name]),
    )


def sample(reference: Reference, name: str) -> Tensor:
    """Our own sample of one of `SAMPLES`."""
    options, guidance = SAMPLES[name]
    return solve(reference, field(reference, guidance), **options)


def field(reference: Reference, guidance: tuple[str, float, float, float] | None) -> VelocityField:
    if guidance is None:
        return reference.model
    kind, texture, semantic, first = guidance
    scale = GuidanceScale(texture, semantic, (first, 1.0))
    if kind == "cfg":
        return ClassifierFreeGuidance(reference.model, reference.model.config.conditions, scale, reference.space)
    assert reference.guide is not None
    return AutoGuidance(reference.model, reference.guide, scale, reference.space)


def solve(reference: Reference, velocity: VelocityField, **options: Any) -> Tensor:
    """From the reference's noise and labels to data."""
    with torch.inference_mode():
        return integrate(
            velocity,
            reference.sample["noise"],
            reference.sample["y"],
            reference.schedule,
            reference.space,
            **options,
        )


@contextmanager
def error_ratios(imposed: Mapping[int, float] | None = None) -> Iterator[list[float]]:
    """The error ratios by which dopri5 judges its attempted steps, listed as they come, some of them imposed.

    A ratio is the estimated error over the allowed one. Up to 1 the step is accepted, and the next one is
    0.9 / ratio^(1/5) times as long, 10 times at most.
    """
    compute, attempts, ratios = dormand_prince._error_ratio, count(1), []

    def listed(*arguments: Any) -> float:
        found = compute(*arguments)
        ratios.append((imposed or {}).get(next(attempts), found))
        return ratios[-1]

    with patch.object(dormand_prince, "_error_ratio", listed):
        yield ratios

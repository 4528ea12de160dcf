"""What law a transformer was trained with, in the words and numbers of a slider."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from sfd_cli.laws import DEFAULT_LAW, law_of
from sfd_cli.pipeline.sampler import Sampler

AROUND = 2.0
"""How far a lead may be moved from the one trained with, where nothing says how far the network knows others."""


@dataclass(frozen=True)
class AheadSlider:
    """By how much semantics go ahead of textures: the one number of a law that can be moved.

    Attributes:
        key: the setting of the section `sample` that it is.
        value: of the settings.
        lowest: the slider's left end.
        highest: the slider's right end.
        trained: what the network was trained on, a sentence.
    """

    key: Literal["delta_t", "lead"]
    value: float
    lowest: float
    highest: float
    trained: str

    @property
    def label(self) -> str:
        """What it is called on the page."""
        return "Offset Δt" if self.key == "delta_t" else "Lead"

    @classmethod
    def of(cls, sampler: Sampler, training: Mapping[str, Any]) -> Self | None:
        """The slider of a model; None where its law has no such number, or there is one time for both streams.

        Args:
            sampler: the model and its settings.
            training: the section `dit` of its training, as far as it is known.
        """
        law, jitter = law_of(sampler.sample), float(training.get("lead_jitter") or 0.0)
        key: Literal["delta_t", "lead"] = "delta_t" if law["schedule"] == DEFAULT_LAW else "lead"
        if key not in law or sampler.dit.config.time_embedding == "single" or not sampler.space.semantic:
            return None
        trained = dict(sampler.trained_law or {})
        center = float(trained.get(key, law[key]))
        if key == "delta_t":
            return cls(key, law[key], 0.0, 1.0, _told(trained, key, jitter))
        reach = jitter or AROUND
        lowest, highest = min(center - reach, law[key]), max(center + reach, law[key])
        return cls(key, law[key], round(lowest, 2), round(highest, 2), _told(trained, key, jitter))


def _told(trained: Mapping[str, Any], key: str, jitter: float) -> str:
    if key not in trained:
        return "What it was trained with is not known."
    name = "an offset" if key == "delta_t" else "a lead"
    said = f"Trained with {name} of {trained[key]:g}"
    if jitter and key == "lead":
        return f"Trained with leads from {trained[key] - jitter:g} to {trained[key] + jitter:g}."
    if jitter:
        return f"{said}, give or take {jitter:g} in logit time."
    return f"{said} alone: elsewhere the network meets pairs of times that it has not seen."

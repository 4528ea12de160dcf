"""What the offset's slider says and how far it goes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sfd_cli.config import Sample
from sfd_cli.play.studio import Studio
from sfd_cli.play.trained import AROUND, AheadSlider


@pytest.mark.parametrize(
    ("law", "training", "expected", "told"),
    [
        ({"schedule": "offset", "delta_t": 0.3}, {}, ("delta_t", 0.3, 0, 1), "offset of 0.3 alone"),
        ({"schedule": "offset", "delta_t": 0.3}, {"lead_jitter": 0.5}, ("delta_t", 0.3, 0, 1), "give or take 0.5"),
        ({"schedule": "lead", "lead": 1.0}, {}, ("lead", 1, 1 - AROUND, 1 + AROUND), "lead of 1 alone"),
        ({"schedule": "lead", "lead": 1.0}, {"lead_jitter": 3.5}, ("lead", 1, -2.5, 4.5), "from -2.5 to 4.5"),
        ({"schedule": "curve", "lead": 2.0, "lead_slope": 0.5}, {}, ("lead", 2, 0, 4), "lead of 2 alone"),
    ],
)
def test_the_slider_is_of_the_law_and_says_what_was_trained(
    studio: Studio, law: dict[str, Any], training: dict[str, Any], expected: tuple[Any, ...], told: str
) -> None:
    slider = AheadSlider.of(replace(studio.sampler, sample=Sample(), trained_law=law), training)
    assert slider is not None
    assert (slider.key, slider.value, slider.lowest, slider.highest) == expected
    assert told in slider.trained


def test_sampled_by_another_offset_it_says_both(studio: Studio) -> None:
    slider = AheadSlider.of(replace(studio.sampler, sample=Sample(delta_t=0.9)), {})
    assert slider is not None
    assert slider.value == 0.9
    assert "offset of 0.3 alone" in slider.trained


def test_where_the_law_of_training_is_not_known_it_says_so(studio: Studio) -> None:
    slider = AheadSlider.of(replace(studio.sampler, sample=Sample(), trained_law=None), {})
    assert slider is not None
    assert "not known" in slider.trained


def test_a_law_of_corners_has_no_slider(studio: Studio) -> None:
    law = {"schedule": "knots", "knots": [0.4, 0.0]}
    assert AheadSlider.of(replace(studio.sampler, sample=Sample(), trained_law=law), {}) is None

"""The path of the paper on learned schedules, where its gradient can be seen through."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sfd_cli.diffusion.kinetic_path import kinetic_curve
from sfd_cli.diffusion.latents import Streams

LEVELS = torch.linspace(-4, 2.2, 13)
ONES = torch.ones(len(LEVELS), len(LEVELS))


def falls_with(stream: int) -> Tensor:
    """Errors that fall with the level of one stream: 0 for textures, 1 for semantics."""
    fall = 1 - LEVELS.sigmoid()
    return fall[:, None].expand(-1, len(LEVELS)) if stream == 0 else fall[None].expand(len(LEVELS), -1)


def test_constant_errors_and_energies_ask_for_the_straight_way() -> None:
    """The energy of a way of given length is least at constant speed, which is synchronous."""
    lead, slope = kinetic_curve(LEVELS, Streams(ONES, ONES), Streams(ONES, ONES), 1.0)
    assert lead == pytest.approx(0, abs=1e-3)
    assert slope == pytest.approx(0, abs=1e-2)


def test_the_stream_that_makes_the_other_easy_leads_and_the_energy_holds_it_back() -> None:
    errors = Streams(falls_with(1), ONES)
    leads = [kinetic_curve(LEVELS, errors, Streams(ONES, ONES), weight)[0] for weight in (0.1, 1.0, 10.0)]
    assert leads[0] > leads[1] > leads[2] > 0
    assert leads[0] > 0.5
    assert leads[2] < 0.1


def test_exchanged_streams_lead_the_other_way() -> None:
    one, _ = kinetic_curve(LEVELS, Streams(falls_with(1), ONES), Streams(ONES, ONES), 0.3)
    other, _ = kinetic_curve(LEVELS, Streams(ONES, falls_with(0)), Streams(ONES, ONES), 0.3)
    assert other == pytest.approx(-one, abs=1e-3)


def test_where_nothing_depends_on_the_other_stream_the_weights_decide_who_leads() -> None:
    """What makes this criterion unfit to say who should lead: twice the error of one stream turns the answer."""
    own = Streams(falls_with(0), falls_with(1))
    even, _ = kinetic_curve(LEVELS, own, Streams(ONES, ONES), 0.3)
    heavy, _ = kinetic_curve(LEVELS, Streams(own.texture, 4 * own.semantic), Streams(ONES, ONES), 0.3)
    light, _ = kinetic_curve(LEVELS, Streams(4 * own.texture, own.semantic), Streams(ONES, ONES), 0.3)
    assert even == pytest.approx(0, abs=1e-3)
    assert heavy == pytest.approx(-light, abs=1e-3)
    assert abs(heavy) > 0.2

"""The way between two noises."""

from __future__ import annotations

import math

import pytest
import torch

from sfd_cli.diffusion.interpolation import slerp


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_ends_are_the_noises_themselves_bit_for_bit() -> None:
    first, last = normal(0, 7, 4, 4), normal(1, 7, 4, 4)
    assert torch.equal(slerp(first, last, 0.0), first)
    assert torch.equal(slerp(first, last, 1.0), last)


def test_right_angles_are_divided_evenly() -> None:
    first, last = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    for part in (0.0, 0.25, 0.5, 0.8, 1.0):
        expected = torch.tensor([2 * math.cos(part * math.pi / 2), 2 * math.sin(part * math.pi / 2)])
        torch.testing.assert_close(slerp(first, last, part), expected)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.7])
def test_between_standard_normal_noises_it_is_as_large_as_they_are(part: float) -> None:
    """A straight line is not: half way it has 0.71 of their norm."""
    first, last = normal(0, 5000), normal(1, 5000)
    between = slerp(first, last, part)
    assert between.norm() / 5000**0.5 == pytest.approx(1, abs=0.03)
    assert between.dtype == torch.float32
    assert (0.5 * first + 0.5 * last).norm() / 5000**0.5 < 0.75


def test_noises_on_one_line_are_no_division_by_zero() -> None:
    first = normal(0, 30)
    torch.testing.assert_close(slerp(first, first, 0.3), first)
    assert slerp(first, -first, 0.25).isfinite().all()

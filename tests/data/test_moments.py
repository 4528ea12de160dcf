"""Running moments: the same however the values arrive, per channel and with all products."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfd_cli.data.moments import Moments

cut_anywhere = st.lists(st.integers(1, 39), unique=True)
offsets = st.sampled_from([0.0, 1e4, -1e6])


@settings(max_examples=60, deadline=None)
@given(cuts=cut_anywhere, offset=offsets)
def test_moments_do_not_depend_on_how_the_images_are_cut(cuts: list[int], offset: float) -> None:
    values = np.random.default_rng(0).standard_normal((40, 2, 3, 2, 2)) + offset
    parts = np.split(values, sorted(cuts))
    merged = Moments.merged(Moments.from_array(Moments.of(part, channel_axis=2).to_array()) for part in parts)
    assert merged.count == 40 * 2 * 4
    np.testing.assert_allclose(merged.mean, values.mean(axis=(0, 1, 3, 4)), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(merged.std, values.std(axis=(0, 1, 3, 4)), rtol=1e-8)


@settings(max_examples=60, deadline=None)
@given(cuts=cut_anywhere, offset=offsets)
def test_the_covariance_does_not_depend_on_how_the_rows_are_cut(cuts: list[int], offset: float) -> None:
    rows = np.random.default_rng(1).standard_normal((40, 4)) @ np.random.default_rng(2).standard_normal((4, 4)) + offset
    parts = np.split(rows, sorted(cuts))
    merged = Moments.merged(Moments.from_array(Moments.of(part, scatter=True).to_array()) for part in parts)
    assert merged.count == 40
    np.testing.assert_allclose(merged.covariance(correction=1), np.cov(rows, rowvar=False), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(merged.covariance(), np.cov(rows, rowvar=False, ddof=0), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(merged.std, rows.std(axis=0), rtol=1e-7)


@pytest.mark.parametrize("scatter", [False, True])
def test_what_is_merged_with_nothing_stays_as_it_is(scatter: bool) -> None:
    some = Moments.of(np.random.default_rng(0).standard_normal((5, 3)), scatter=scatter)
    nothing = Moments.none(3, scatter=scatter)
    for merged in (nothing.merge(some), some.merge(nothing), nothing.merge(nothing).merge(some)):
        assert np.array_equal(merged.to_array(), some.to_array())


def test_moments_of_nothing_have_the_shape_that_was_asked_for() -> None:
    assert Moments.none(3).deviations.shape == (3,)
    assert Moments.none(3, scatter=True).deviations.shape == (3, 3)


def test_channels_are_the_last_axis_where_nothing_else_is_said() -> None:
    values = np.random.default_rng(0).standard_normal((4, 5, 3))
    assert np.array_equal(Moments.of(values).to_array(), Moments.of(values, 2).to_array())
    np.testing.assert_allclose(Moments.of(values).mean, values.mean(axis=(0, 1)))


def test_values_handed_in_are_left_alone() -> None:
    values = np.arange(6.0).reshape(3, 2)
    Moments.of(values, scatter=True)
    Moments.of(values)
    assert np.array_equal(values, np.arange(6.0).reshape(3, 2))


def test_channels_alone_have_no_covariance() -> None:
    with pytest.raises(ValueError, match="covariance"):
        Moments.of(np.ones((3, 2))).covariance()

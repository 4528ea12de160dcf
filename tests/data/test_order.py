"""The order in which a trainer sees images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfd_cli.data.order import EpochSampler

sizes = st.tuples(st.integers(1, 40), st.integers(1, 90), st.integers(0, 2**32))


def images(sampler: EpochSampler, steps: int) -> np.ndarray:
    return np.concatenate([sampler.batch(step)[0] for step in range(steps)])


@given(sizes)
@settings(deadline=None, max_examples=60)
def test_every_epoch_visits_every_image_once_whatever_the_batch_size(size: tuple[int, int, int]) -> None:
    count, batch_size, seed = size
    sampler = EpochSampler(count, batch_size, seed)
    seen = images(sampler, -(-3 * count // batch_size))
    for epoch in range(3):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))


@given(sizes, st.integers(0, 1000))
@settings(deadline=None, max_examples=60)
def test_a_batch_depends_on_the_step_alone_and_not_on_the_batches_before(size: tuple[int, int, int], step: int) -> None:
    used, fresh = EpochSampler(*size), EpochSampler(*size)
    for earlier in range(5):
        used.batch(earlier)
    for a, b in zip(used.batch(step), fresh.batch(step), strict=True):
        np.testing.assert_array_equal(a, b)


def test_epochs_and_seeds_differ_in_order_and_in_flips() -> None:
    first, second = EpochSampler(500, 500, 0).batch(0), EpochSampler(500, 500, 0).batch(1)
    other_seed = EpochSampler(500, 500, 1).batch(0)
    for batch in (second, other_seed):
        assert (batch[0] != first[0]).mean() > 0.9
        assert 0.3 < (batch[1] != first[1]).mean() < 0.7


def test_flips_are_zero_or_one_and_about_as_often() -> None:
    flips = EpochSampler(4000, 4000, 3).batch(0)[1]
    assert set(flips) == {0, 1}
    assert 0.45 < flips.mean() < 0.55


def test_only_the_positions_given_are_drawn() -> None:
    chosen = np.array([3, 5, 8])
    assert set(images(EpochSampler(10, 4, 0, chosen), 6)) == {3, 5, 8}


@pytest.mark.parametrize("chosen", [None, [3, 5, 8], np.array([3, 5, 8], np.int32)])
def test_positions_and_flips_are_int64_whatever_the_choice_came_as(chosen: np.ndarray | None) -> None:
    positions, flips = EpochSampler(10, 4, 0, chosen).batch(0)
    assert (positions.dtype, flips.dtype) == (np.int64, np.int64)
    assert positions.shape == flips.shape == (4,)


@pytest.mark.parametrize(("count", "indices"), [(0, None), (5, np.array([], np.int64)), (5, np.array([5])), (5, [-1])])
def test_a_sampler_of_nothing_or_of_images_that_are_not_there_is_refused(count: int, indices: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"batch_size|indices"):
        EpochSampler(count, 2, 0, indices)


def test_the_draws_of_images_and_mirror_images_are_those_of_earlier_versions() -> None:
    """A run begun by one version goes on with another; these values are of the first."""
    sampler = EpochSampler(7, 5, 3)
    batches = [[part.tolist() for part in sampler.batch(step)] for step in range(3)]
    assert batches == [
        [[5, 6, 2, 1, 4], [0, 0, 1, 0, 0]],
        [[3, 0, 2, 1, 4], [0, 1, 0, 1, 1]],
        [[0, 5, 6, 3, 4], [1, 1, 0, 0, 1]],
    ]
    late = EpochSampler(1000, 4, 11, np.array([3, 999, 500, 7, 20])).batch(400)
    assert [part.tolist() for part in late] == [[999, 500, 20, 3], [1, 0, 0, 1]]


@given(sizes, st.integers(0, 1000))
@settings(deadline=None, max_examples=60)
def test_without_mirror_images_the_order_is_the_same_and_nothing_is_flipped(
    size: tuple[int, int, int], step: int
) -> None:
    (positions, _), (alone, flips) = EpochSampler(*size).batch(step), EpochSampler(*size, flips=1).batch(step)
    np.testing.assert_array_equal(alone, positions)
    assert flips.dtype == np.int64
    assert flips.tolist() == [0] * size[1]


@pytest.mark.parametrize("flips", [0, 3])
def test_an_image_is_there_as_is_or_flipped_too(flips: int) -> None:
    with pytest.raises(ValueError, match="flips"):
        EpochSampler(5, 2, 0, flips=flips)

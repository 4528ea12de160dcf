"""KID on features made by hand."""

from __future__ import annotations

import pytest
from hand_made_features import features

from sfd_cli.devices import DeviceKind
from sfd_cli.evaluation import kid
from sfd_cli.evaluation.kid import kernel_distance
from sfd_cli.evaluation.reasons import TooFewImages


def test_the_kernel_distance_is_near_zero_between_equals_and_repeats() -> None:
    equal = kernel_distance(features(120, 6, 1), features(120, 6, 2))
    apart = kernel_distance(features(120, 6, 1), features(100, 6, 2, shift=5.0))
    assert abs(equal["mean"]) < 0.05 * apart["mean"]
    assert apart["subset"] == 100
    assert kernel_distance(features(120, 6, 1), features(100, 6, 2, shift=5.0)) == apart


def test_the_kernel_distance_is_torch_fidelitys_over_the_same_subsets(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    a, b = features(50, 6, 1), features(70, 6, 2, shift=0.3)
    monkeypatch.setattr(kid, "LARGEST_SUBSET", 20)
    for seed in (0, 3):
        theirs = kid_features_to_metric(a, b, kid_subsets=100, kid_subset_size=20, rng_seed=seed, verbose=False)
        found = kernel_distance(a, b, seed)
        assert found["mean"] == pytest.approx(theirs[KEY_METRIC_KID_MEAN], rel=1e-6)
        assert found["std"] == pytest.approx(theirs[KEY_METRIC_KID_STD], rel=1e-6)
    assert kernel_distance(a, b) == kernel_distance(a, b, seed=0)


@pytest.mark.parametrize("shift", [0.0, 1e-3, 0.3])
def test_on_a_device_it_is_the_same_number(monkeypatch: pytest.MonkeyPatch, shift: float) -> None:
    a, b = features(60, 40, 1), features(60, 40, 2, shift=shift)
    expected = kernel_distance(a, b, 5)
    monkeypatch.setattr(kid, "kind_of", lambda _: DeviceKind("mine"))
    found = kernel_distance(a, b, 5)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
    monkeypatch.setattr(kid, "kind_of", lambda _: DeviceKind("mine", float64=False))
    assert kernel_distance(a, b, 5) == expected


@pytest.mark.parametrize(
    ("samples", "reference", "subset"), [(30, 20, 20), (20, 30, 20), (1001, 1200, 1000), (2, 9, 2)]
)
def test_a_subset_is_a_thousand_images_or_the_smaller_set(
    monkeypatch: pytest.MonkeyPatch, samples: int, reference: int, subset: int
) -> None:
    monkeypatch.setattr(kid, "SUBSETS", 1)
    assert kernel_distance(features(samples, 2), features(reference, 2))["subset"] == subset


def test_one_image_has_no_unbiased_kernel_distance() -> None:
    with pytest.raises(TooFewImages) as caught:
        kernel_distance(features(1, 2), features(9, 2))
    assert (caught.value.needed, caught.value.found) == (2, 1)

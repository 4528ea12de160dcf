"""Precision and recall on features made by hand."""

from __future__ import annotations

import pytest
import torch
from hand_made_features import features

from sfd_cli.evaluation.precision_recall import precision_recall
from sfd_cli.evaluation.reasons import TooFewImages


def test_precision_is_about_samples_and_recall_about_the_reference() -> None:
    reference = features(200, 4, 1)
    collapsed = reference[:1] + 1e-3 * features(50, 4, 2)
    precision, recall = precision_recall(collapsed, reference, 3)
    assert precision > 0.9
    assert recall < 0.1


@pytest.mark.parametrize("k", [2, 3, 7])
def test_precision_and_recall_agree_with_a_direct_count(k: int) -> None:
    samples, reference = features(40, 3, 1), features(60, 3, 2, shift=0.7)

    def covered(points: torch.Tensor, centres: torch.Tensor) -> float:
        within = torch.cdist(centres, centres).sort(dim=1).values[:, k]
        return (torch.cdist(points, centres) <= within).any(dim=1).double().mean().item()

    found = precision_recall(samples, reference, k)
    assert found == pytest.approx((covered(samples, reference), covered(reference, samples)))


def test_precision_needs_a_kth_neighbour() -> None:
    for samples, reference in ((3, 50), (50, 3)):
        with pytest.raises(TooFewImages) as caught:
            precision_recall(features(samples, 4), features(reference, 4), 3)
        assert (caught.value.needed, caught.value.found) == (4, 3)

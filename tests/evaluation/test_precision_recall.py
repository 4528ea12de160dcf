"""Precision and recall on features made by hand."""

from __future__ import annotations

import pytest
import torch
from hand_made_features import features

from sfd_cli.evaluation import precision_recall as module
from sfd_cli.evaluation.precision_recall import precision_recall
from sfd_cli.evaluation.reasons import TooFewImages


def test_precision_is_about_samples_and_recall_about_the_reference() -> None:
    reference = features(200, 4, 1)
    collapsed = reference[:1] + 1e-3 * features(50, 4, 2)
    precision, recall = precision_recall(collapsed, reference, 3)
    assert precision > 0.9
    assert recall < 0.1


@pytest.mark.parametrize("tile", [9, 20, 1024])
@pytest.mark.parametrize("k", [2, 3, 7])
def test_precision_and_recall_agree_with_a_direct_count(k: int, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TILE", tile)
    samples, reference = features(40, 3, 1), features(60, 3, 2, shift=0.7)

    def covered(points: torch.Tensor, centres: torch.Tensor) -> float:
        within = torch.cdist(centres, centres).sort(dim=1).values[:, k]
        return (torch.cdist(points, centres) <= within).any(dim=1).double().mean().item()

    found = precision_recall(samples, reference, k)
    assert found == pytest.approx((covered(samples, reference), covered(reference, samples)))


def test_precision_and_recall_are_torch_fidelitys(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    monkeypatch.setattr(module, "TILE", 64)
    samples, reference = features(300, 8, 1), features(200, 8, 2, shift=0.7)
    theirs = prc_features_to_metric(samples, reference, prc_neighborhood=3, prc_batch_size=50, verbose=False)
    assert precision_recall(samples, reference, 3) == (theirs[KEY_METRIC_PRECISION], theirs[KEY_METRIC_RECALL])


def test_no_more_than_a_tile_of_distances_is_held_and_none_is_taken_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    cdist = torch.cdist

    def measured(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        sizes.append((len(one), len(other)))
        return cdist(one, other)

    monkeypatch.setattr(module, "TILE", 10)
    monkeypatch.setattr(torch, "cdist", measured)
    precision_recall(features(40, 3, 1), features(60, 3, 2), 3)
    assert max(max(size) for size in sizes) == 10
    assert len(sizes) == 4 * 6 + (4 * 5 + 6 * 7) // 2


def test_precision_needs_a_kth_neighbour() -> None:
    for samples, reference in ((3, 50), (50, 3)):
        with pytest.raises(TooFewImages) as caught:
            precision_recall(features(samples, 4), features(reference, 4), 3)
        assert (caught.value.needed, caught.value.found) == (4, 3)

"""The five scores of ADM's evaluator against NumPy, written from their definitions.

On given features, and on those of an Inception with random weights.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hand_made_features import fitted
from torch import Tensor, nn

from sfd_cli.evaluation import extractors
from sfd_cli.evaluation.extractor import LOGITS, POOLED, SPATIAL, Extractor
from sfd_cli.evaluation.frechet import FRECHET, SPATIAL_FRECHET
from sfd_cli.evaluation.inception_score import inception_score
from sfd_cli.evaluation.precision_recall import precision_recall

CPU = torch.device("cpu")


def normal(count: int, width: int, seed: int, spread: float = 1.0) -> Tensor:
    return spread * torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def expected_distance(samples: np.ndarray, reference: np.ndarray) -> float:
    """Of the features themselves: the trace of the root of AB is the sum of singular values of the product of both
    centred data matrices, so that no root of a matrix is taken."""
    one, other = (rows.astype(np.float64) for rows in (samples, reference))
    shift = one.mean(axis=0) - other.mean(axis=0)
    one, other = ((rows - rows.mean(axis=0)) / np.sqrt(len(rows) - 1) for rows in (one, other))
    nuclear = np.linalg.svd(one @ other.T, compute_uv=False).sum()
    return float(shift @ shift + np.square(one).sum() + np.square(other).sum() - 2 * nuclear)


def expected_inception_score(logits: np.ndarray, split: int = 5000) -> float:
    """exp of the mean over images of sum_y p(y|x) log(p(y|x) / p(y)), for each run of 5,000, and their mean."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    p = exponentials / exponentials.sum(axis=1, keepdims=True)
    parts = [p[start : start + split] for start in range(0, len(p), split)]
    return float(np.mean([np.exp(np.mean(np.sum(part * np.log(part / part.mean(axis=0)), axis=1))) for part in parts]))


def expected_precision_recall(samples: np.ndarray, reference: np.ndarray, k: int = 3) -> tuple[float, float]:
    """An image counts if it lies within the distance to the k-th neighbour of any image of the other side."""

    def distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.stack([np.linalg.norm(other - row, axis=1) for row in one.astype(np.float64)])

    def covered(points: np.ndarray, centres: np.ndarray) -> float:
        radii = np.sort(distances(centres, centres), axis=1)[:, k]  # the nearest to a centre is itself
        return float(np.mean((distances(points, centres) <= radii).any(axis=1)))

    return covered(samples, reference), covered(reference, samples)


def test_inception_score_of_given_logits_in_splits_of_which_the_last_is_shorter() -> None:
    logits = normal(11_234, 20, seed=0, spread=2.0)
    splits = inception_score(logits)
    assert len(splits) == 3
    assert np.mean(splits) == pytest.approx(expected_inception_score(logits.numpy()), rel=1e-6)


@pytest.mark.parametrize("classes", [2, 10])
def test_inception_score_of_certain_and_evenly_spread_classes_is_their_number(classes: int) -> None:
    sure = 60 * torch.eye(classes).repeat(50, 1)
    assert inception_score(sure) == [pytest.approx(classes, rel=1e-6)]
    assert inception_score(torch.zeros(30, classes)) == [pytest.approx(1.0)], "knowing nothing"
    assert inception_score(sure[:1].repeat(30, 1)) == [pytest.approx(1.0)], "one class alone"


def test_a_class_that_no_image_can_have_adds_nothing() -> None:
    logits = torch.tensor([[0.0, 1.0, -3000.0], [1.0, 0.0, -3000.0]])
    assert inception_score(logits) == [pytest.approx(inception_score(logits[:, :2])[0])]


@pytest.mark.parametrize(("samples", "reference"), [(40, 70), (70, 40)])
def test_distances_and_coverage_of_given_features(samples: int, reference: int) -> None:
    ours, real = normal(samples, 12, seed=1, spread=1.3), normal(reference, 12, seed=2)
    found = FRECHET.function(fitted(ours), fitted(real))
    assert found == pytest.approx(expected_distance(ours.numpy(), real.numpy()), rel=1e-6)
    assert precision_recall(ours, real, 3) == pytest.approx(expected_precision_recall(ours.numpy(), real.numpy()))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> tuple[Extractor, nn.Module]:
    """The extractor with random weights, for the real ones are not to be had here, and the network inside."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    made: list[nn.Module] = []

    def load_state_dict(self: nn.Module, state: object) -> None:
        made.append(self)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for one in self.modules():
                if isinstance(one, nn.Conv2d):
                    nn.init.kaiming_normal_(one.weight)
                elif isinstance(one, nn.BatchNorm2d):
                    one.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
                    one.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]

    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save({}, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", load_state_dict)
        extractor = extractors.inception_extractor(path, CPU)
    return extractor, made[0]


@pytest.fixture(scope="module")
def sets(network: tuple[Extractor, nn.Module]) -> list[dict[str, Tensor]]:
    """Features of two sets of pictures, of blocks so that they differ, by kind."""
    draws = torch.Generator().manual_seed(1)
    found = []
    for count, blocks in ((8, 4), (11, 8)):
        small = torch.randint(0, 256, (count, 3, blocks, blocks), dtype=torch.uint8, generator=draws)
        found.append(network[0](small.repeat_interleave(16 // blocks, 2).repeat_interleave(16 // blocks, 3)))
    return found


def test_inception_gives_what_adm_takes_from_it(network: tuple[Extractor, nn.Module]) -> None:
    extractor, inside = network
    before: list[Tensor] = []
    hook = inside.Mixed_6d.register_forward_pre_hook(lambda module, inputs: before.append(inputs[0]))  # type: ignore
    images = torch.randint(0, 256, (2, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    found = extractor(images)
    hook.remove()
    assert {kind: features.shape for kind, features in found.items()} == {
        POOLED: (2, 2048),
        SPATIAL: (2, 2023),
        LOGITS: (2, 1008),
    }
    weights = {name: value.double().numpy() for name, value in inside.Mixed_6d.branch1x1.state_dict().items()}  # type: ignore
    values = np.einsum("nchw,kc->nhwk", before[0].double().numpy(), weights["conv.weight"][:, :, 0, 0])
    values = (values - weights["bn.running_mean"]) / np.sqrt(weights["bn.running_var"] + 1e-3)
    values = np.maximum(values * weights["bn.weight"] + weights["bn.bias"], 0)[..., :7]
    assert (values > 0).mean() > 0.2
    np.testing.assert_allclose(found[SPATIAL].numpy(), values.reshape(2, -1), rtol=1e-4, atol=1e-4)
    logits = found[POOLED].numpy() @ inside.fc.weight.numpy().T  # type: ignore[union-attr, operator]
    np.testing.assert_allclose(found[LOGITS].numpy(), logits, rtol=1e-4, atol=1e-4)
    assert np.abs(inside.fc.bias.numpy()).max() > 0, "or it could not be told that it is left out"  # type: ignore


def test_the_five_scores_of_a_random_inceptions_features(sets: list[dict[str, Tensor]]) -> None:
    ours, real = sets
    for metric in (FRECHET, SPATIAL_FRECHET):
        rows = [found[metric.features][:, ::4] for found in sets]  # a quarter, for a matrix of all takes a minute
        expected = expected_distance(rows[0].numpy(), rows[1].numpy())
        assert metric.function(fitted(rows[0]), fitted(rows[1])) == pytest.approx(expected, rel=1e-6)
        assert expected > 0
    assert inception_score(ours[LOGITS]) == [pytest.approx(expected_inception_score(ours[LOGITS].numpy()), rel=1e-6)]
    found = precision_recall(ours[POOLED], real[POOLED], 3)
    assert found == pytest.approx(expected_precision_recall(ours[POOLED].numpy(), real[POOLED].numpy()))


def test_statistics_of_both_kinds_are_read_from_adms_npz(tmp_path: Path) -> None:
    from sfd_cli.evaluation.npz import open_npz

    pooled, spatial = fitted(normal(9, 4, seed=0)), fitted(normal(9, 3, seed=1))
    np.savez(
        tmp_path / "adm.npz",
        mu=pooled.mean,
        sigma=pooled.covariance,
        mu_s=spatial.mean,
        sigma_s=spatial.covariance,
    )
    images, found = open_npz(tmp_path / "adm.npz")
    assert images is None
    assert [one.width for one in found] == [4, 3]
    np.testing.assert_array_equal(found[1].covariance, spatial.covariance)

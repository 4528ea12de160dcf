"""Linear class accuracy against exact Bayes values, chance, and plain formulas."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import Tensor

from sfd_cli.diffusion import spectra
from sfd_cli.diffusion.class_accuracy import HeldOutAccuracy, LinearClassifier, ledoit_wolf
from sfd_cli.diffusion.spectra import Directions, directions_of_others


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def accuracy_of(x: Tensor, labels: Tensor, classes: int) -> HeldOutAccuracy:
    folds = torch.randperm(len(x), generator=seeded(7)) % 4
    return HeldOutAccuracy(x, labels, classes, folds, directions_of_others(x, folds), seeded(8))


def two_classes(count: int = 4000, shift: float = 1.2) -> tuple[Tensor, Tensor, Tensor]:
    """Correlated images (n, 3) of two classes, `shift` away from their middle, labels, and the covariance."""
    labels = torch.arange(count) % 2
    root = torch.tensor([[1.0, 0.0, 0.0], [1.5, 0.5, 0.0], [0.0, 0.3, 2.0]])
    away = shift * torch.tensor([1.0, -0.5, 0.7])
    x = torch.randn(count, 3, generator=seeded()) @ root.T + (2 * labels[:, None] - 1) * away + 5
    return x, labels, root @ root.T


@pytest.mark.parametrize("time", [0.05, 0.3, 0.6, 0.9, 1.0])
def test_two_gaussian_classes_are_told_as_well_as_can_be(time: float) -> None:
    x, labels, covariance = two_classes()
    away = 1.2 * torch.tensor([1.0, -0.5, 0.7])
    noisy = time**2 * covariance + (1 - time) ** 2 * torch.eye(3)
    distance = time * float((away @ torch.linalg.solve(noisy, away)).sqrt())
    found = float(accuracy_of(x, labels, 2).at(time).mean())
    assert found == pytest.approx(NormalDist().cdf(distance), abs=0.02)


def test_noise_on_scores_is_noise_on_images() -> None:
    x, labels, _ = two_classes(400)
    directions = Directions.of(x)
    weights, offsets = LinearClassifier.of(x, labels, 2, directions).at(0.4)
    many = 0.4 * directions.project(x) + 0.6 * torch.randn(500, 400, 3, generator=seeded(), dtype=torch.float64)
    by_hand = float(((many @ weights.T + offsets).argmax(-1) == labels).double().mean())
    assert float(accuracy_of(x, labels, 2).at(0.4).mean()) == pytest.approx(by_hand, abs=0.03)


def test_scores_are_those_of_the_shrunk_covariance_inverted_plainly() -> None:
    x = torch.randn(60, 5, generator=seeded()) @ torch.randn(5, 5, generator=seeded(1))
    labels = torch.tensor([3, *([0, 1, 1, 2, 2, 2] * 10)[1:]])
    directions = Directions.of(x)
    found = LinearClassifier.of(x, labels, 4, directions)
    values = x.double().numpy()
    centres = np.stack([values[labels.numpy() == label].mean(0) for label in range(4)])
    residuals = values - centres[labels.numpy()]
    within = residuals.T @ residuals / 60
    mu = np.trace(within) / 5
    d2 = ((within - mu * np.eye(5)) ** 2).sum() / 5
    b2 = sum(((np.outer(r, r) - within) ** 2).sum() for r in residuals) / 60**2 / 5
    assert found.shrinkage == pytest.approx(b2 / d2)
    assert found.scale == pytest.approx(mu)
    shrunk = (1 - b2 / d2) * within + b2 / d2 * mu * np.eye(5)
    time = 0.7
    inverse = np.linalg.inv(time**2 * shrunk + (1 - time) ** 2 * np.eye(5))
    means = time * (centres - values.mean(0))
    weights, offsets = found.at(time)
    np.testing.assert_allclose(weights.numpy() @ directions.basis.numpy().T, means @ inverse, atol=1e-10)
    priors = np.log([9 / 60, 1 / 3, 1 / 2, 1 / 60])
    np.testing.assert_allclose(offsets.numpy(), priors - np.einsum("kd,de,ke->k", means, inverse, means) / 2)


def test_fewer_images_than_channels_are_told_the_same_in_either_basis(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.arange(48) % 3
    x = torch.randn(48, 40, generator=seeded()) + torch.eye(3, 40)[labels] * 3
    complete = accuracy_of(x, labels, 3)
    monkeypatch.setattr(spectra, "MOST_VALUES", 20)
    thin = accuracy_of(x, labels, 3)
    for time in (0.5, 1.0):
        assert complete.at(time).mean() == pytest.approx(float(thin.at(time).mean()), abs=0.1)
    torch.testing.assert_close(complete.at(1.0), thin.at(1.0))
    assert complete.at(1.0).mean() > 0.7


def test_pure_noise_is_told_by_chance_and_so_is_anything_at_time_0() -> None:
    labels = torch.arange(6000) % 3
    noise = accuracy_of(torch.randn(6000, 8, generator=seeded()), labels, 3)
    assert float(noise.at(1.0).mean()) == pytest.approx(1 / 3, abs=0.03)
    telling = accuracy_of(torch.eye(3)[labels] + 0.1 * torch.randn(6000, 3, generator=seeded()), labels, 3)
    assert float(telling.at(0.0).mean()) == pytest.approx(1 / 3, abs=0.03)
    assert float(telling.at(1.0).mean()) == 1


def test_of_uneven_classes_without_a_difference_the_larger_is_guessed() -> None:
    labels = (torch.arange(2000) % 5 == 0).long()
    found = accuracy_of(torch.randn(2000, 3, generator=seeded()), labels, 2)
    assert float(found.at(0.5).mean()) == pytest.approx(0.8, abs=0.01)


def test_a_class_without_images_is_never_guessed() -> None:
    x, labels, _ = two_classes(200, 0.5)
    with_none = accuracy_of(x, labels * 2, 3).at(1.0)
    assert set(with_none.tolist()) == {0.0, 1.0}
    torch.testing.assert_close(with_none, accuracy_of(x, labels, 2).at(1.0))
    torch.testing.assert_close(with_none, accuracy_of(x, labels, 3).at(1.0))


def test_the_classifier_has_not_seen_the_image() -> None:
    # Every image is a class-mean of its own but for one partner of another class: in-sample all would be right.
    labels = torch.arange(40) % 2
    found = accuracy_of(torch.randn(40, 200, generator=seeded()), labels, 2)
    assert float(found.at(1.0).mean()) < 0.8


def test_a_covariance_like_the_identity_is_shrunk_all_the_way() -> None:
    lengths = torch.full((10,), 4.0, dtype=torch.float64)
    assert ledoit_wolf(lengths, 4.0, 4) == (1.0, 1.0)
    uneven = torch.tensor([1.0, 1.0, 1.0, 5.0], dtype=torch.float64)  # mean square 7: scale 1, error (7 - q) / 8
    assert ledoit_wolf(uneven, 2.5, 2) == (1.0, 1.0)  # distance 0.25, error 0.5625
    assert ledoit_wolf(uneven, 3.0, 2) == (1.0, 1.0)  # distance 0.5, error 0.5
    assert ledoit_wolf(uneven, 3.5, 2) == (pytest.approx(0.4375 / 0.75), 1.0)
    assert ledoit_wolf(uneven, 8.0, 2) == (0.0, 1.0)


def test_the_same_seed_gives_the_same_noise() -> None:
    x, labels, _ = two_classes(80)
    assert torch.equal(accuracy_of(x, labels, 2).at(0.3), accuracy_of(x, labels, 2).at(0.3))


@pytest.mark.parametrize(
    ("labels", "classes", "said"),
    [([0, 0, 0, 0], 1, "1 classes"), ([0, 1, 2, 0], 2, "labels 0 to 2"), ([0, -1, 0, 0], 2, "-1")],
)
def test_labels_that_are_no_classes_are_refused(labels: list[int], classes: int, said: str) -> None:
    x, folds = torch.randn(4, 2, generator=seeded()), torch.arange(4) % 2
    with pytest.raises(ValueError, match=said):
        HeldOutAccuracy(x, torch.tensor(labels), classes, folds, directions_of_others(x, folds), seeded())


def test_classes_that_do_not_vary_are_refused() -> None:
    labels = torch.arange(8) % 2
    with pytest.raises(ValueError, match="varies"):
        accuracy_of(torch.eye(2)[labels], labels, 2)

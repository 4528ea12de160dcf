"""Images held out for validation, and that none of them has a twin among those trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import refusal
from scipy.sparse.csgraph import connected_components

from sfd_cli.data import near_duplicates
from sfd_cli.data.near_duplicates import compared_together, hold_out, near_duplicate_clusters, store_clusters
from sfd_cli.data.shards import StoreWriter
from sfd_cli.data.store import Field, Store
from sfd_cli.errors import SettingError

COUNT, SHAPES = 40, {"texture": (3, 2, 2), "semantic": (2, 2, 2)}


def vectors_with_twins(seed: int, count: int = 60, views: int = 2, size: int = 8) -> np.ndarray:
    """Random vectors (count, views, size), of which two thirds are near another's first view or a mirror image's."""
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(count, views, size))
    for copy in generator.permutation(count)[: 2 * count // 3].tolist():
        source = vectors[generator.integers(count), generator.integers(views)]
        vectors[copy, 0] = generator.uniform(0.1, 9) * (source + generator.normal(scale=0.25, size=size))
    return vectors


def pairs_above(vectors: np.ndarray, similarity: float) -> np.ndarray:
    """Whether each image's first view is alike to any view of a later one, one pair after the other: (n, n) bool."""
    alike = np.zeros((len(vectors), len(vectors)), bool)
    for i in range(len(vectors)):
        for j in range(i + 1, len(vectors)):
            a = vectors[i, 0]
            cosines = [np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)) for b in vectors[j]]
            alike[i, j] = max(cosines) > similarity
    return alike


@pytest.mark.parametrize("block", [1, 7, 60, 1024])
@pytest.mark.parametrize(("seed", "views"), [(0, 1), (1, 2), (2, 2)])
def test_clusters_are_the_components_of_all_pairs(
    monkeypatch: pytest.MonkeyPatch, block: int, seed: int, views: int
) -> None:
    monkeypatch.setattr(near_duplicates, "BLOCK", block)
    vectors = vectors_with_twins(seed, views=views)
    clusters = near_duplicate_clusters(vectors)
    _, components = connected_components(pairs_above(vectors, 0.95), directed=False)
    expected = [int(np.flatnonzero(components == component)[0]) for component in components]
    assert clusters.tolist() == expected
    sizes = np.unique(clusters, return_counts=True)[1]
    assert sizes.max() > 2, "chains must be among them"
    assert (sizes == 1).any()


def test_a_chain_is_one_cluster_though_its_ends_are_unlike() -> None:
    angles = np.array([0.0, 2.0, 0.3, 0.6])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)[:, None]
    assert np.cos(0.3) > 0.95 > np.cos(0.6)
    assert near_duplicate_clusters(vectors).tolist() == [0, 1, 0, 0]
    assert near_duplicate_clusters(vectors, similarity=0.96).tolist() == [0, 1, 2, 3]


def test_a_vector_of_zeros_is_like_no_other() -> None:
    vectors = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [0.0, 0.0]])[:, None]
    assert near_duplicate_clusters(vectors).tolist() == [0, 1, 1, 3]


def test_whole_clusters_are_held_out_as_many_images_as_asked_for() -> None:
    clusters = np.repeat(np.arange(40), [1] * 20 + [3] * 20)
    split = hold_out(clusters, 0.25, seed=3)
    assert len(split.held_out) == 20
    assert sorted([*split.training, *split.held_out]) == list(range(80))
    assert not set(clusters[split.training]) & set(clusters[split.held_out])
    assert len(np.unique(clusters[split.held_out])) < 20, "clusters of three must be among them"
    assert len(split.control) == 20
    assert set(split.control) <= set(split.training)
    for part in (split.training, split.held_out, split.control):
        assert (np.diff(part) > 0).all()


def test_the_split_is_the_seeds() -> None:
    clusters = np.arange(100) // 2
    first, again, other = (hold_out(clusters, 0.3, seed) for seed in (0, 0, 1))
    for name in ("training", "held_out", "control"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
        assert not np.array_equal(getattr(first, name), getattr(other, name))


def test_what_does_not_fit_is_passed_over_and_few_training_images_are_all_the_control() -> None:
    clusters = np.array([0] * 7 + [7, 8, 9])
    for seed in range(5):
        assert hold_out(clusters, 0.3, seed).held_out.tolist() == [7, 8, 9]
    split = hold_out(np.arange(10), 0.8, seed=0)
    assert len(split.held_out) == 8
    assert split.control.tolist() == split.training.tolist()


def test_every_image_is_held_out_equally_often() -> None:
    often = np.zeros(10)
    for seed in range(2000):
        often[hold_out(np.arange(10), 0.3, seed).held_out] += 1
    assert often / 2000 == pytest.approx([0.3] * 10, abs=0.05)


@pytest.mark.parametrize(
    ("clusters", "fraction", "named"),
    [
        (np.arange(20), 0.99, ("0.99", 20, "lower")),
        (np.arange(20), 0.01, ("0.01", 20, "are 0", "raise")),
        (np.zeros(20, int), 0.5, ("0.5", "are 10", "has 20", "raise")),
    ],
    ids=["none to train on", "less than an image", "one cluster"],
)
def test_a_split_with_an_empty_side_is_refused(clusters: np.ndarray, fraction: float, named: tuple[Any, ...]) -> None:
    with refusal("holdout", *named, kind=SettingError):
        hold_out(clusters, fraction, seed=0)


def test_many_images_are_compared_within_their_class_in_runs() -> None:
    labels = np.array([2, 0, 2, 0, 2, 2, 1])
    assert [rows.tolist() for rows in compared_together(labels, 7)] == [[0, 1, 2, 3, 4, 5, 6]]
    assert [rows.tolist() for rows in compared_together(labels, 3)] == [[1, 3], [6], [0, 2, 4], [5]]
    labels = np.arange(1000) * 7 % 3
    assert all((np.diff(rows) > 0).all() for rows in compared_together(labels, 999))


def store_with_twins(folder: Path, fields: tuple[str, ...], flips: int) -> tuple[Store, dict[str, np.ndarray]]:
    """A store whose images 20 and up are near those before by one field, each other one's by its mirror image."""
    generator = np.random.default_rng(0)
    arrays = {name: generator.normal(5, 3, (COUNT, flips, *SHAPES[name])) for name in fields}
    twins = arrays[fields[-1]]
    # What all images have in common makes none the twin of another, and a channel of small values counts like the rest.
    twins += generator.normal(0, 1000, twins.shape[2:])
    twins[:, :, -1] /= 30
    for copy in range(20, COUNT):
        noise = generator.normal(scale=0.2, size=twins.shape[2:])
        noise[-1] /= 30
        twins[copy, 0] = twins[copy - 20, copy % flips] + noise
    arrays = {name: values.astype(np.float16) for name, values in arrays.items()}
    writer = StoreWriter(folder, {name: Field((flips, *SHAPES[name])) for name in fields}, COUNT, 16, "latents")
    for shard in range(writer.shard_count):
        rows = writer.rows(shard)
        writer.write_shard(shard, {name: values[rows.start : rows.stop] for name, values in arrays.items()})
    std = {"texture": [3.0, 2.0, 0.1], "semantic": [3.0, 0.1]}
    statistics = {
        "mean": np.full(sum(SHAPES[name][0] for name in fields), 5.0),
        "std": np.array([value for name in fields for value in std[name]]),
    }
    files = [f"{index}.png" for index in range(COUNT)]
    writer.finish([index % 4 for index in range(COUNT)], files, range(COUNT), list("abcd"), statistics)
    return Store(folder), arrays


@pytest.mark.parametrize("block", [7, 1024])
@pytest.mark.parametrize("flips", [1, 2])
@pytest.mark.parametrize("fields", [("texture", "semantic"), ("texture",)])
def test_no_image_held_out_has_a_near_duplicate_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: tuple[str, ...], flips: int, block: int
) -> None:
    monkeypatch.setattr(near_duplicates, "BLOCK", block)
    store, arrays = store_with_twins(tmp_path / "store", fields, flips)
    split = hold_out(store_clusters(store), 0.3, seed=0)
    assert 10 <= len(split.held_out) <= 12
    values = arrays[fields[-1]].astype(np.float64)
    std = np.array([3.0, 0.1] if len(fields) == 2 else [3.0, 2.0, 0.1])[:, None, None]
    vectors = ((values - values.mean((0, 1))) / std).reshape(COUNT, flips, -1)
    alike = pairs_above(vectors, 0.95)
    alike |= alike.T
    assert alike.any(axis=1).sum() >= 20
    assert not alike[np.ix_(split.training, split.held_out)].any()
    _, components = connected_components(alike, directed=False)
    clusters = np.array([np.flatnonzero(components == component)[0] for component in components])
    expected = hold_out(clusters, 0.3, seed=0)
    for name in ("training", "held_out", "control"):
        assert np.array_equal(getattr(split, name), getattr(expected, name))
    assert alike[np.ix_(split.held_out, split.held_out)].any()


def test_in_a_large_store_images_of_other_classes_are_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = store_with_twins(tmp_path / "store", ("texture", "semantic"), 1)
    seen: list[int] = []
    original = near_duplicates.near_duplicate_clusters
    monkeypatch.setattr(near_duplicates, "MOST_COMPARED", 39)
    monkeypatch.setattr(near_duplicates, "near_duplicate_clusters", lambda v: (seen.append(len(v)), original(v))[1])
    # Image i + 20 is of the class of image i, and its twin.
    split = hold_out(store_clusters(store), 0.3, seed=0)
    assert seen == [10, 10, 10, 10]
    held_out = set(split.held_out.tolist())
    twins = {(image + 20) % COUNT for image in held_out}
    assert len(twins & held_out) > len(held_out) // 2

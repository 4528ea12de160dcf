"""Images kept out of training to validate it: whole clusters of near-duplicates, so that none has a twin left in it.

A network that has seen an image's twin has seen the image: 25 % of the demo's images have one, and an error on images
drawn one by one would hide what it is there to show.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sfd_cli.data.store import Store
from sfd_cli.errors import SettingError
from sfd_cli.progress import progress

SIMILARITY = 0.95
"""Two images whose centred latents have a larger cosine are near-duplicates."""

MOST_COMPARED = 65_536
"""Images that are compared pair by pair: it bounds memory (1 GB at 4,096 values of an image) and time (its square)."""

BLOCK = 1024


@dataclass(frozen=True)
class Split:
    """Positions in a store, int64, sorted, with no near-duplicates in both `training` and `held_out`.

    Attributes:
        training: images to learn from.
        held_out: images to validate on.
        control: some of `training`, as many as are held out (all where there are fewer), on which a network that
            learns images by heart is better than on those held out.
    """

    training: np.ndarray
    held_out: np.ndarray
    control: np.ndarray


def store_clusters(store: Store) -> np.ndarray:
    """The cluster of near-duplicates that every image of a latent store is in, int64 (n,), by a position in it.

    Images are compared by their semantic latents, or by their textures where the store has no semantics, scaled by the
    store's standard deviations, less the mean image; where mirror images are stored, each also with others' mirror
    images. In a store of more than MOST_COMPARED images one is compared with those of its class only, and in a class
    of more with as many of its neighbours in the store: for ImageNet these are 0.1 % of all pairs, and the time goes
    into reading the latents once.
    """
    field = "semantic" if "semantic" in store.fields else "texture"
    mean = _mean_image(store, field)
    clusters = np.arange(len(store))
    for rows in progress(compared_together(store.labels, MOST_COMPARED), "near-duplicates", unit="group"):
        clusters[rows] = rows[near_duplicate_clusters(_vectors(store, field, rows, mean))]
    return clusters


def near_duplicate_clusters(vectors: np.ndarray, similarity: float = SIMILARITY) -> np.ndarray:
    """The connected components of images, two being connected where a cosine of theirs is above `similarity`.

    Products are float64 and in blocks: beside the vectors there is memory for some blocks only, and a cosine on the
    edge does not fall on the other side for another number of threads.

    Args:
        vectors: centred, (n, views, d); the first view of an image is compared with all views of those after it. A
            vector of zeros is like no other.
        similarity: at least 0.

    Returns:
        The smallest position in its component for every image, int64 (n,).
    """
    clusters = np.arange(len(vectors))
    starts = range(0, len(vectors), BLOCK)
    for first in starts:
        rows = _directions(vectors[first : first + BLOCK, 0])
        for second in starts[first // BLOCK :]:
            others = _directions(vectors[second : second + BLOCK])
            cosines = rows @ others.reshape(-1, others.shape[-1]).T
            alike = (cosines > similarity).reshape(len(rows), *others.shape[:2]).any(axis=-1)
            if first == second:
                alike = np.triu(alike, 1)
            for row in np.flatnonzero(alike.any(axis=1)).tolist():
                _join(clusters, np.append(np.flatnonzero(alike[row]) + second, first + row))
    return clusters


def compared_together(labels: np.ndarray, most: int) -> list[np.ndarray]:
    """Positions of images to be compared with one another: all, or those of a class, `most` at most; sorted."""
    if len(labels) <= most:
        return [np.arange(len(labels))]
    by_class = np.split(np.argsort(labels, kind="stable"), np.flatnonzero(np.diff(np.sort(labels))) + 1)
    return [rows[start : start + most] for rows in by_class for start in range(0, len(rows), most)]


def hold_out(clusters: np.ndarray, fraction: float, seed: int) -> Split:
    """Split images by whole clusters, which are taken in an order drawn by `seed` for as long as they fit.

    Args:
        clusters: a number for every image, equal for those of one cluster, (n,).
        fraction: of the images to hold out, rounded to a whole one; as many or a little fewer are.
        seed: of the order, and of what training images are the control.

    Raises:
        SettingError: nothing would be held out, or nothing left to train on.
    """
    count = len(clusters)
    wanted = round(fraction * count)
    if wanted >= count:
        raise SettingError("holdout", f"{fraction:g} of {count} images leaves none to train on", "lower it")
    generator = np.random.default_rng(seed)
    _, members, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    taken, left = np.zeros(len(sizes), bool), wanted
    for cluster in generator.permutation(len(sizes)).tolist():
        if sizes[cluster] <= left:
            taken[cluster] = True
            left -= sizes[cluster]
    if left == wanted:
        problem = f"{fraction:g} of {count} images are {wanted}, and the smallest cluster of near-duplicates has "
        raise SettingError("holdout", problem + str(sizes.min()), "raise it, or use 0")
    is_held = taken[members]
    training, held_out = np.flatnonzero(~is_held), np.flatnonzero(is_held)
    return Split(training, held_out, np.sort(generator.permutation(training)[: len(held_out)]))


def _directions(vectors: np.ndarray) -> np.ndarray:
    """Vectors (..., d) divided by their lengths, float64."""
    vectors = vectors.astype(np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), np.finfo(np.float64).tiny)


def _join(clusters: np.ndarray, members: np.ndarray) -> None:
    """Make one cluster of those that the images at `members` are in."""
    found = np.unique(clusters[members])
    if len(found) > 1:
        clusters[np.isin(clusters, found)] = found[0]


def _vectors(store: Store, field: str, rows: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Latents at `rows` less `mean`, scaled, float32 (n, views, C h w)."""
    views = store.fields[field].shape[0]
    scale = store.statistics["std"][-len(mean) :, None, None]  # semantics come last, and textures where there are none
    vectors = np.empty((len(rows), views, mean.size), np.float32)
    for start in range(0, len(rows), BLOCK):
        raw = store.read(field, rows[start : start + BLOCK])
        vectors[start : start + BLOCK] = ((raw - mean) / scale).reshape(len(raw), views, -1)
    return vectors


def _mean_image(store: Store, field: str) -> np.ndarray:
    """Mean over the store, or over MOST_COMPARED images spread over it, and over their views, float64 (C, h, w)."""
    count = min(len(store), MOST_COMPARED)
    rows = np.arange(count) * len(store) // count
    views, *shape = store.fields[field].shape
    total = np.zeros(shape)
    for start in range(0, count, BLOCK):
        total += store.read(field, rows[start : start + BLOCK]).sum(axis=(0, 1), dtype=np.float64)
    return total / (count * views)

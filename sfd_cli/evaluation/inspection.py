"""What a latent store tells about the order of its streams before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from sfd_cli.data.latent_space import read_latents, space_of_store
from sfd_cli.data.near_duplicates import near_duplicate_clusters
from sfd_cli.data.store import Store
from sfd_cli.diffusion.class_accuracy import HeldOutAccuracy
from sfd_cli.diffusion.latents import Streams
from sfd_cli.diffusion.schedule import Schedule
from sfd_cli.diffusion.spectra import (
    MOST_VALUES,
    Directions,
    Estimate,
    Levels,
    Spectrum,
    directions_of_others,
    level_of,
)
from sfd_cli.errors import UserError

T = TypeVar("T")

MOST_IMAGES = 8192
MOST_LARGE_IMAGES = 2048
"""Images that are looked at of a store whose images are taken as a whole, and of one whose images are too large."""

MOST_CLASSES = 64
"""Classes that are told apart; of more, as many are looked at, evenly spread."""

FOLDS = 4
FEWEST_IMAGES = 8 * FOLDS
SHARES = (0.25, 0.5, 0.75)
"""Shares of the variance at which the streams are compared; the middle one is the one that counts."""

HALF = SHARES[1]
PARITY = tuple(step / 20 for step in range(1, 20))
LOGITS = torch.linspace(-5, 5, 41, dtype=torch.float64)
ACCURACY_LOGITS = LOGITS[::2]
LAW_POINTS = 401


@dataclass(frozen=True)
class Chosen:
    """Images of a store to look at: positions (n,), labels counted from 0 (n,), and how many classes these are of."""

    rows: np.ndarray
    labels: Tensor
    classes: int

    @classmethod
    def of(cls, store: Store, most: int) -> Chosen:
        """At most `most` images of at most MOST_CLASSES classes, evenly spread over the store."""
        present, labels = np.unique(store.labels, return_inverse=True)
        wanted = _spread(len(present), MOST_CLASSES)
        rows = np.flatnonzero(np.isin(labels, wanted))
        rows = rows[_spread(len(rows), most)]
        return cls(rows, torch.from_numpy(np.searchsorted(wanted, labels[rows])), len(wanted))


def inspect_store(store: Store, seed: int = 0) -> dict[str, Any]:
    """Spectra, information, levels and class accuracy of both streams, and warnings in words.

    Args:
        store: latents.
        seed: of folds, noise and the bootstrap.

    Raises:
        UserError: the store has no semantics, too few images, or a stream that does not vary.
    """
    space = space_of_store(store)
    if not space.semantic:
        raise UserError(store.folder, "has no semantics, so there is no order to choose", "encode with a semvae")
    whole = max(space.texture, space.semantic) * space.grid**2 <= MOST_VALUES
    chosen = Chosen.of(store, MOST_IMAGES if whole else MOST_LARGE_IMAGES)
    if len(chosen.rows) < FEWEST_IMAGES:
        problem = f"has {len(chosen.rows)} images, and {FEWEST_IMAGES} are the fewest to tell anything from"
        raise UserError(store.folder, problem, "encode more")
    latents = space.views(read_latents(store, chosen.rows, space))
    clusters = clusters_of(latents.semantic)
    folds = folds_of(clusters, seed)
    if folds.unique().numel() < FOLDS:
        raise UserError(store.folder, "has hardly any images that are not near-duplicates", "look at what was encoded")
    readings = []
    for name, x in zip(Streams._fields, latents, strict=True):
        try:
            # The same noise for both: what they differ by is then known better.
            readings.append(Reading.of(x, chosen, folds, whole, torch.Generator().manual_seed(seed)))
        except ValueError as error:
            raise UserError(store.folder, f"its {name} stream {error}", "look at what was encoded") from None
    return _described(Streams(*readings), chosen, clusters, whole, seed)


@dataclass(frozen=True)
class Reading:
    """What is known of one stream; `accuracy` is None where there is one class."""

    spectrum: Spectrum
    accuracy: HeldOutAccuracy | None

    @classmethod
    def of(cls, x: Tensor, chosen: Chosen, folds: Tensor, whole: bool, generator: torch.Generator) -> Reading:
        """Of a stream's normalised latents (n, C, h, w)."""
        flat, accuracy = x.flatten(1), None
        directions: Sequence[Directions] = directions_of_others(flat, folds) if whole or chosen.classes > 1 else ()
        spectrum = Spectrum.of_whole(flat, folds, directions) if whole else Spectrum.of_positions(x, folds)
        if chosen.classes > 1:
            accuracy = HeldOutAccuracy(flat, chosen.labels, chosen.classes, folds, directions, generator)
        return cls(spectrum, accuracy)


def folds_of(clusters: Tensor, seed: int) -> Tensor:
    """A fold from 0 to FOLDS - 1 for every image (n,), one for a whole cluster (n,), and about as many in each."""
    sizes = torch.bincount(clusters).tolist()
    order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed)).tolist()
    filled, fold = [0] * FOLDS, torch.zeros(len(sizes), dtype=torch.long)
    for cluster in order:
        least = filled.index(min(filled))
        fold[cluster] = least
        filled[least] += sizes[cluster]
    return fold[clusters]


def clusters_of(semantic: Tensor) -> Tensor:
    """A number for every image (n,), from 0, equal for near-duplicates by their semantics (n, ...)."""
    flat = semantic.flatten(1).double()
    found = near_duplicate_clusters((flat - flat.mean(dim=0)).numpy()[:, None])
    return torch.from_numpy(np.unique(found, return_inverse=True)[1])


def law_against_level(schedule: Schedule, found: dict[str, Any]) -> dict[str, Any]:
    """How a law's lead compares with what `inspect_store` found.

    Returns:
        `mean_logit_time` of both streams and the `lead` there, along the schedule where both are finite; `ahead`, by
        how much the lead is more than what makes the streams draw level, where both are half resolved, or None where
        the schedule has no lead there.
    """
    times = schedule.times(torch.linspace(0, schedule.end, LAW_POINTS, dtype=torch.float64))
    texture, semantic = (time.logit() for time in times)
    finite = texture.isfinite() & semantic.isfinite()
    places, leads = ((texture + semantic)[finite] / 2).tolist(), (semantic - texture)[finite].tolist()
    half = found["levels"][f"{HALF:g}"]
    middle = (half["texture"] + half["semantic"]) / 2
    ahead = None
    if places and places[0] <= middle <= places[-1]:
        ahead = float(np.interp(middle, places, leads)) - half["lead"]
    return {"mean_logit_time": places, "lead": leads, "ahead": ahead}


def _described(streams: Streams[Reading], chosen: Chosen, clusters: Tensor, whole: bool, seed: int) -> dict[str, Any]:
    spectra = Streams(*(reading.spectrum for reading in streams))
    # The same resamplings for all shares.
    levels = {share: Levels.of(spectra, share, clusters, torch.Generator().manual_seed(seed)) for share in SHARES}
    accuracy = _accuracy(streams, chosen, clusters, levels[HALF])
    return {
        "images": len(chosen.rows),
        "clusters": int(clusters.max()) + 1,
        "classes": chosen.classes,
        "seed": seed,
        "covariance_of": "whole images" if whole else "positions, averaged",
        "spectra": {name: spectrum.values.tolist() for name, spectrum in _named(spectra)},
        "logit_times": LOGITS.tolist(),
        "information": {name: spectrum.information(LOGITS).tolist() for name, spectrum in _named(spectra)},
        "resolved": {name: spectrum.resolved(LOGITS).tolist() for name, spectrum in _named(spectra)},
        "levels": {f"{share:g}": _level(found) for share, found in levels.items()},
        "parity": _parity(spectra),
        "accuracy": accuracy,
        "warnings": _warnings(levels[HALF], accuracy),
    }


def _level(levels: Levels) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, estimate in (*_named(levels.streams), ("lead", levels.lead)):
        found |= {name: estimate.value, f"{name}_standard_error": estimate.standard_error}
    return found


def _parity(spectra: Streams[Spectrum]) -> dict[str, list[float]]:
    """The lead at which both have resolved the same share, against the mean logit time there, for PARITY."""
    texture, semantic = (torch.stack([level_of(one.values, share) for share in PARITY]) for one in spectra)
    return {"mean_logit_time": ((texture + semantic) / 2).tolist(), "lead": (semantic - texture).tolist()}


def _accuracy(streams: Streams[Reading], chosen: Chosen, clusters: Tensor, half: Levels) -> dict[str, Any] | None:
    """Class accuracy against logit time, at t = 1, and at each stream's own level; None where there is one class."""
    readers = [(name, reading.accuracy) for name, reading in _named(streams) if reading.accuracy is not None]
    if not readers:
        return None
    times = ACCURACY_LOGITS.sigmoid().tolist()
    return {
        "chance": float(torch.bincount(chosen.labels).max()) / len(chosen.labels),
        "logit_times": ACCURACY_LOGITS.tolist(),
        **{name: [float(reader.at(time).mean()) for time in times] for name, reader in readers},
        "whole": _compared({name: reader.at(1.0) for name, reader in readers}, clusters),
        "half_resolved": _compared(
            {name: reader.at(_sigmoid(getattr(half.streams, name).value)) for name, reader in readers}, clusters
        ),
    }


def _compared(right: dict[str, Tensor], clusters: Tensor) -> dict[str, float]:
    """Accuracy of either stream, and semantics minus textures with its standard error over clusters of images."""
    difference = right["semantic"] - right["texture"]
    of_clusters = torch.zeros(int(clusters.max()) + 1, dtype=torch.float64)
    of_clusters.index_add_(0, clusters, difference - difference.mean())
    error = float(of_clusters.square().sum().sqrt()) / len(difference)
    means = {name: float(shares.mean()) for name, shares in right.items()}
    return means | {"difference": float(difference.mean()), "difference_standard_error": error}


def _warnings(half: Levels, accuracy: dict[str, Any] | None) -> list[str]:
    found = []
    if half.lead.is_above_zero:
        lead = f"{half.lead.value:.2f} +- {half.lead.standard_error:.2f}"
        found.append(f"textures resolve before semantics: only a lead of {lead} in logit time makes them draw level")
    for key, where in (("whole", "without noise"), ("half_resolved", "with half of each stream's variance resolved")):
        if accuracy is None:
            continue
        at = accuracy[key]
        if not Estimate(at["difference"], at["difference_standard_error"]).is_above_zero:
            found.append(
                f"semantics are no more informative than textures: {where} they tell the class of"
                f" {at['semantic']:.1%} of the images, textures of {at['texture']:.1%} (difference"
                f" {at['difference']:+.1%} +- {at['difference_standard_error']:.1%})"
            )
    return found


def warnings_of_oracle(oracle: dict[str, float]) -> list[str]:
    """A warning where real semantics are worth nothing; of what `Oracle.measure` returns."""
    gain = Estimate(oracle["gain"], oracle["gain_standard_error"])
    if gain.is_above_zero:
        return []
    return [
        "real semantics make no better images than sampled ones by the law that these are sampled by: Fréchet"
        f" distance {oracle['real_semantics']:.4g} against {oracle['sampled_semantics']:.4g} (gain {gain.value:+.3g}"
        f" +- {gain.standard_error:.2g})"
    ]


def _named(streams: Streams[T]) -> list[tuple[str, T]]:
    return list(zip(Streams._fields, streams, strict=True))


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def _spread(count: int, most: int) -> np.ndarray:
    """At most `most` of the numbers below `count`, evenly spread."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)

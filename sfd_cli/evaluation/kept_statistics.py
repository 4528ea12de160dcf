"""Gaussians of training images that were scored against before, in the cache: run after run needs the same ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sfd_cli.evaluation.extractor import Extractor
from sfd_cli.evaluation.gaussian import Gaussian
from sfd_cli.evaluation.npz import open_npz
from sfd_cli.evaluation.reference import Reference
from sfd_cli.files import atomic_path, fingerprint
from sfd_cli.weights.fetch import cache_folder

FOLDER = "reference_statistics"
VERSION = 1
"""Part of the key; raised when the same images and weights give other features than before."""


def recall(reference: Reference, extractor: Extractor, kind: str) -> Gaussian | None:
    """The Gaussian of this extractor's features of a kind of the reference, if an earlier run has kept it.

    Raises:
        UserError: the kept file is damaged.
    """
    place = _place(reference, extractor, kind)
    return open_npz(place)[1][0] if place is not None and place.exists() else None


def keep(reference: Reference, extractor: Extractor, kind: str, gaussian: Gaussian) -> None:
    """Keep the Gaussian for `recall`, where it can be told whose it is; to the bit, whole or not at all."""
    place = _place(reference, extractor, kind)
    if place is not None:
        with atomic_path(place) as temporary, open(temporary, "wb") as file:
            np.savez(file, mu=gaussian.mean, sigma=gaussian.covariance, count=gaussian.count or 0)


def _place(reference: Reference, extractor: Extractor, kind: str) -> Path | None:
    """By what decides the features; None where images or weights have no fingerprint."""
    if not (reference.contents and extractor.identity):
        return None
    key = fingerprint([VERSION, reference.contents, extractor.name, kind, extractor.identity])
    return cache_folder() / FOLDER / f"{key}.npz"

"""Which images an autoencoder was not fitted to: what it is scored on."""

from __future__ import annotations

from typing import Any

import numpy as np

from sfd_cli.artifacts.recipe import Record
from sfd_cli.data.images import evenly_spaced
from sfd_cli.data.validation_split import validation_split
from sfd_cli.weights.models import Model


def unseen_rows(model: Model[Any], source: str, fingerprint: str, count: int, most: int) -> tuple[np.ndarray, str]:
    """Rows of a set of images that a model is scored on, evenly spread, and what they are, in words.

    Those that its own stage held out, where it was fitted to this very set; any, where it was imported or fitted to
    others. Whether the weights that are imported were fitted to these images nothing here can tell.

    Args:
        model: an autoencoder.
        source: what its stage calls the set among its inputs: images, or features.
        fingerprint: of the set.
        count: images in it.
        most: rows that are wanted at most.
    """
    record = Record.read(model.folder)
    if record is None or "weights" in record.inputs:
        rows, what = np.arange(count), "of imported weights"
    elif record.inputs.get(source) != fingerprint or "holdout" not in record.settings:
        rows, what = np.arange(count), "of a set that it was not fitted to"
    else:
        rows, what = validation_split(count, record.settings["holdout"])[1], "held out of its fitting"
    return rows[evenly_spaced(len(rows), most)], what

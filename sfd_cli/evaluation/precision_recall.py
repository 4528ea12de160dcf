"""Precision and recall of samples, on features: by tiles of distances, on the device that the features are on."""

from __future__ import annotations

import torch
from torch import Tensor

from sfd_cli.config import Fid
from sfd_cli.evaluation.metric import RowMetric, Score
from sfd_cli.evaluation.reasons import Scores, TooFewImages

TILE = 1024
"""Images of either side whose distances to one another are held at once."""


def precision_recall(samples: Tensor, reference: Tensor, k: int) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019).

    Precision is the share of samples (n, D) inside the union of balls around the reference images (m, D),
    the radius of each ball being the distance from its centre to the k-th nearest other one; recall is the same
    with the roles swapped. Beside the features there is memory for a few tiles only, and a distance is taken once for
    both of the images that it is between: half of what torch-fidelity computes, with the same result.

    Raises:
        TooFewImages: n or m is not above k.
    """
    smaller = min(len(samples), len(reference))
    if smaller <= k:
        raise TooFewImages(needed=k + 1, found=smaller)
    samples, reference = samples.float(), reference.float()
    sample_radii, reference_radii = _radii(samples, k), _radii(reference, k)
    precise, recalled = (torch.zeros(len(rows), dtype=torch.bool, device=rows.device) for rows in (samples, reference))
    for one in _tiles(samples):
        for other in _tiles(reference):
            apart = torch.cdist(samples[one], reference[other])
            precise[one] |= (apart <= reference_radii[other]).any(dim=1)
            recalled[other] |= (apart <= sample_radii[one, None]).any(dim=0)
    return precise.float().mean().item(), recalled.float().mean().item()


def _radii(rows: Tensor, k: int) -> Tensor:
    """Distance of each row (n, D) to its k-th nearest other one, (n,)."""
    nearest = torch.full((len(rows), k + 1), torch.inf, device=rows.device)  # and to itself
    tiles = _tiles(rows)
    for number, one in enumerate(tiles):
        for other in tiles[number:]:
            apart = torch.cdist(rows[one], rows[other])
            nearest[one] = _smallest(nearest[one], apart)
            if other != one:
                nearest[other] = _smallest(nearest[other], apart.T)
    return nearest[:, -1]


def _smallest(known: Tensor, more: Tensor) -> Tensor:
    """The smallest numbers of each row, ascending, as many as are known already."""
    return torch.cat([known, more], dim=1).topk(known.shape[1], largest=False).values


def _tiles(rows: Tensor) -> list[slice]:
    return [slice(start, start + TILE) for start in range(0, len(rows), TILE)]


def _compute(samples: Tensor, reference: Tensor, options: Fid) -> Scores:
    precision, recall = precision_recall(samples, reference, options.neighbours)
    return {"precision": precision, "recall": recall}


PRECISION_RECALL = RowMetric((Score("precision", "Precision"), Score("recall", "Recall")), _compute)

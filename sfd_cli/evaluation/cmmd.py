"""CMMD, the maximum mean discrepancy of CLIP embeddings (Jayasumana et al. 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from sfd_cli.config import Fid
from sfd_cli.devices import doubled
from sfd_cli.evaluation.extractor import EMBEDDING
from sfd_cli.evaluation.metric import RowMetric, Score
from sfd_cli.evaluation.reasons import Scores

BANDWIDTH = 10.0
SCALE = 1000.0
BLOCK = 4096
"""Rows whose kernel with as many others is held at once: 134 MB in float64."""


def clip_discrepancy(samples: Tensor, reference: Tensor) -> float:
    """Squared MMD with the Gaussian kernel of bandwidth 10, times 1,000; the biased estimate, as in the paper's code.

    Args:
        samples: embeddings (n, D) of the generated images, of unit length.
        reference: embeddings (m, D) of the real images.
    """
    within = _mean_kernel(samples, samples) + _mean_kernel(reference, reference)
    return SCALE * (within - 2 * _mean_kernel(samples, reference))


def _mean_kernel(first: Tensor, second: Tensor) -> float:
    """Mean of exp(-|a - b|^2 / 2 s^2) over all pairs of rows, in float64: means differ by some 1e-4."""
    total = 0.0
    for left in first.split(BLOCK):
        for right in second.split(BLOCK):
            a, b = doubled(left), doubled(right)
            squared = a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T
            total += float(torch.exp(-squared / (2 * BANDWIDTH**2)).sum())
    return total / (len(first) * len(second))


def _compute(samples: Tensor, reference: Tensor, options: Fid) -> Scores:
    return {"cmmd": clip_discrepancy(samples, reference)}


CMMD = RowMetric((Score("cmmd", "CLIP discrepancy (CMMD)"),), _compute, EMBEDDING)

"""KID, the kernel distance between two sets of features, with torch-fidelity's kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from sfd_cli.config import Fid
from sfd_cli.devices import kind_of
from sfd_cli.evaluation.metric import RowMetric, Score
from sfd_cli.evaluation.reasons import Scores, TooFewImages

SUBSETS = 100
LARGEST_SUBSET = 1000


def kernel_distance(samples: Tensor, reference: Tensor, seed: int = 0) -> dict[str, Any]:
    """KID (Binkowski et al. 2018): unbiased MMD^2 with the cubic kernel, over 100 random subsets.

    Args:
        samples: features (n, D) of the generated images.
        reference: features (m, D) of the real images.
        seed: seed of the subsets.

    Returns:
        `mean`, `std` over the subsets, and `subset`, the images of each set in one subset: 1000, or all
        of the smaller set.

    Raises:
        TooFewImages: a set holds fewer than two, of which there is no unbiased estimate.
    """
    subset = min(LARGEST_SUBSET, len(samples), len(reference))
    if subset < 2:
        raise TooFewImages(needed=2, found=subset)
    draws = np.random.RandomState(seed)
    kind = kind_of(samples.device)
    discrepancy = _on_the_cpu if kind.is_cpu or not kind.float64 else _on_the_device
    # torch-fidelity's own loop draws the same subsets, but takes all features in float64: twice their memory again.
    parts = ([draws.choice(len(rows), subset, replace=False) for rows in (samples, reference)] for _ in range(SUBSETS))
    found = [discrepancy(samples[first], reference[second]) for first, second in parts]
    values = [float(one) for one in found]  # which waits for a device once all is asked of it
    return {"mean": float(np.mean(values)), "std": float(np.std(values)), "subset": subset}


def _on_the_cpu(first: Tensor, second: Tensor) -> float:
    """Unbiased squared MMD of two subsets (n, D), by torch-fidelity."""
    from torch_fidelity.metric_kid import kernel_mmd

    return float(kernel_mmd(*(rows.cpu().numpy().astype(np.float64) for rows in (first, second))))


def _on_the_device(first: Tensor, second: Tensor) -> Tensor:
    """The same where the features are, a float64 number there.

    In float64, too: the result is a difference of means of kernels that may be a thousand times as large, and float32
    leaves 1e-4 of it.
    """
    x, y, count = first.double(), second.double(), len(first)

    def kernels(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def between(rows: Tensor) -> Tensor:
        found = kernels(rows, rows)
        return (found.sum() - found.diagonal().sum()) / (count * (count - 1))

    return between(x) + between(y) - 2 * kernels(x, y).mean()


def _compute(samples: Tensor, reference: Tensor, options: Fid) -> Scores:
    found = kernel_distance(samples, reference, options.seed)
    return {"kid": found["mean"], "kid_std": found["std"]}


KID = RowMetric((Score("kid", "Kernel distance (KID)", spread="kid_std"),), _compute)

"""KID, the kernel distance between two sets of features, with torch-fidelity's kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from sfd_cli.config import Fid
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
    from torch_fidelity.metric_kid import kernel_mmd

    subset = min(LARGEST_SUBSET, len(samples), len(reference))
    if subset < 2:
        raise TooFewImages(needed=2, found=subset)
    draws = np.random.RandomState(seed)
    found = []
    # torch-fidelity's own loop draws the same subsets, but takes all features in float64: twice their memory again.
    for _ in range(SUBSETS):
        first, second = (
            rows[draws.choice(len(rows), subset, replace=False)].cpu().numpy().astype(np.float64)
            for rows in (samples, reference)
        )
        found.append(kernel_mmd(first, second))
    return {"mean": float(np.mean(found)), "std": float(np.std(found)), "subset": subset}


def _compute(samples: Tensor, reference: Tensor, options: Fid) -> Scores:
    found = kernel_distance(samples, reference, options.seed)
    return {"kid": found["mean"], "kid_std": found["std"]}


KID = RowMetric((Score("kid", "Kernel distance (KID)", spread="kid_std"),), _compute)

"""Metrics on the features themselves, by torch-fidelity: kernel distance, precision and recall."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

SUBSETS = 100
LARGEST_SUBSET = 1000
# Rows of features whose distances to all others are held at once; torch's kthvalue takes five times their memory.
DISTANCES = 512


def kernel_distance(samples: Tensor, reference: Tensor, seed: int = 0) -> dict[str, Any]:
    """KID (Binkowski et al. 2018): unbiased MMD^2 with the cubic kernel, over 100 random subsets.

    Args:
        samples: features (n, D) of the generated images.
        reference: features (m, D) of the real images.
        seed: seed of the subsets.

    Returns:
        `mean`, `std` over the subsets, and `subset`, the images of each set in one subset: 1000, or all
        of the smaller set.
    """
    from torch_fidelity.metric_kid import kernel_mmd

    subset = min(LARGEST_SUBSET, len(samples), len(reference))
    draws = np.random.RandomState(seed)
    found = []
    # torch-fidelity's own loop draws the same subsets, but takes all features in float64: twice their memory again.
    for _ in range(SUBSETS):
        first, second = (
            rows.numpy()[draws.choice(len(rows), subset, replace=False)].astype(np.float64)
            for rows in (samples, reference)
        )
        found.append(kernel_mmd(first, second))
    return {"mean": float(np.mean(found)), "std": float(np.std(found)), "subset": subset}


def precision_recall(samples: Tensor, reference: Tensor, neighbours: int) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019).

    Precision is the share of samples (n, D) inside the union of balls around the reference images (m, D),
    each ball reaching to its centre's k-th neighbour; recall is the same with the roles swapped.

    Raises:
        ValueError: a set has no k-th neighbour (n or m not above k).
    """
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    if min(len(samples), len(reference)) <= neighbours:
        raise ValueError(f"needs more than {neighbours} images on either side")
    found = prc_features_to_metric(
        samples.float(),
        reference.float(),
        prc_neighborhood=neighbours,
        prc_batch_size=DISTANCES,
        save_cpu_ram=True,
        verbose=False,
    )
    return found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL]

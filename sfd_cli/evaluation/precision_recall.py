"""Precision and recall of samples, on features, by torch-fidelity."""

from __future__ import annotations

from torch import Tensor

from sfd_cli.config import Fid
from sfd_cli.evaluation.metric import RowMetric, Score
from sfd_cli.evaluation.reasons import Scores, TooFewImages

# Rows of features whose distances to all others are held at once; torch's kthvalue takes five times their memory.
DISTANCES = 512


def precision_recall(samples: Tensor, reference: Tensor, k: int) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019).

    Precision is the share of samples (n, D) inside the union of balls around the reference images (m, D),
    the radius of each ball being the distance from its centre to the k-th nearest other one; recall is the same
    with the roles swapped.

    Raises:
        TooFewImages: n or m is not above k.
    """
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    smaller = min(len(samples), len(reference))
    if smaller <= k:
        raise TooFewImages(needed=k + 1, found=smaller)
    found = prc_features_to_metric(
        samples.float(),
        reference.float(),
        prc_neighborhood=k,
        prc_batch_size=DISTANCES,
        save_cpu_ram=True,
        verbose=False,
    )
    return found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL]


def _compute(samples: Tensor, reference: Tensor, options: Fid) -> Scores:
    precision, recall = precision_recall(samples, reference, options.neighbours)
    return {"precision": precision, "recall": recall}


PRECISION_RECALL = RowMetric((Score("precision", "Precision"), Score("recall", "Recall")), _compute)

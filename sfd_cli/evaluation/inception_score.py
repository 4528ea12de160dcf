"""The Inception score: how sure a classifier is of each sample, and how evenly its classes come."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sfd_cli.devices import doubled
from sfd_cli.evaluation.metric import SampleMetric, Score
from sfd_cli.evaluation.reasons import Scores

SPLIT = 5000
"""Images of one split, as in ADM's evaluator; the last one has what is left and counts as much as the others."""


def inception_score(logits: Tensor) -> list[float]:
    """The score of each split of samples in their order (Salimans et al. 2016): exp of the mean KL(p(y|x) || p(y)).

    Args:
        logits: of the classifier (n, classes), without its bias, as ADM's evaluator has them; in float64 inside.
    """
    scores = []
    for part in logits.split(SPLIT):
        log_p = torch.log_softmax(doubled(part), dim=1)
        p = log_p.exp()
        divergence = (p * (log_p - p.mean(dim=0).log())).nansum(dim=1)  # a class that no image has adds nothing
        scores.append(float(divergence.mean().exp()))
    return scores


def _compute(logits: Tensor) -> Scores:
    scores = inception_score(logits)
    return {"inception_score": float(np.mean(scores)), "inception_score_std": float(np.std(scores))}


INCEPTION_SCORE = SampleMetric(
    (Score("inception_score", "Inception score", "{samples:,} samples", spread="inception_score_std"),), _compute
)

"""Features made by hand, and Gaussians fitted to them."""

from __future__ import annotations

import torch

from sfd_cli.evaluation.gaussian import FeatureMoments, Gaussian


def features(count: int, width: int, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(99))
    return torch.randn(count, width, generator=generator) @ mixing + shift


def fitted(rows: torch.Tensor) -> Gaussian:
    moments = FeatureMoments(rows.shape[1])
    moments.update(rows)
    return Gaussian.of(moments.moments())

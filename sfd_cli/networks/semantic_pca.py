"""Principal components of patch tokens as semantic latents: the compressor of ReDi (arXiv 2504.16064)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from sfd_cli.architecture import require_components, require_counts
from sfd_cli.networks.gaussian import LOGVAR_RANGE
from sfd_cli.networks.principal import leading_directions


@dataclass(frozen=True)
class SemanticPCAConfig:
    """The whole architecture: `feature_width` D of the patch tokens, `channels` C_s of the latent."""

    feature_width: int
    channels: int

    def __post_init__(self) -> None:
        require_counts(feature_width=self.feature_width)
        require_components(self.feature_width, self.channels)


class SemanticPCA(nn.Module):
    """Patch tokens to their leading principal components and back, with the interface of the Semantic VAE.

    Every feature is standardised first, as in ReDi. `mean` and `scale` (D,) are the features' mean and standard
    deviation, `components` (C_s, D) the orthonormal directions, largest variance first.
    """

    mean: Tensor
    scale: Tensor
    components: Tensor

    def __init__(self, config: SemanticPCAConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(config.feature_width))
        self.register_buffer("scale", torch.ones(config.feature_width))
        self.register_buffer("components", torch.eye(config.channels, config.feature_width))

    @classmethod
    def of_tokens(cls, mean: Tensor, covariance: Tensor, channels: int) -> Self:
        """The `channels` leading components of tokens with this mean (D,) and covariance (D, D), both float64."""
        # A feature that never varies has no correlation with any other.
        scale = covariance.diagonal().clamp_min(1e-12).sqrt()
        components = leading_directions(covariance / torch.outer(scale, scale), channels)
        network = cls(SemanticPCAConfig(len(mean), channels))
        network.load_state_dict({"mean": mean.float(), "scale": scale.float(), "components": components.float()})
        return network

    def encode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Patch tokens (B, N, D) -> components and logvar, each (B, N, C_s); the logvar is the smallest there is."""
        latents = (tokens - self.mean) / self.scale @ self.components.T
        return latents, torch.full_like(latents, LOGVAR_RANGE[0])

    def decode(self, latents: Tensor) -> Tensor:
        """Components (B, N, C_s) -> the patch tokens (B, N, D) that they span."""
        return latents @ self.components * self.scale + self.mean

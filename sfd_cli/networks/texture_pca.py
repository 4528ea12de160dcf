"""Principal components of pixel patches as texture latents: exact, fitted in seconds, with nothing trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfd_cli.architecture import require_components
from sfd_cli.networks.gaussian import LOGVAR_RANGE
from sfd_cli.networks.principal import leading_directions


@dataclass(frozen=True)
class TexturePCAConfig:
    """The whole architecture: side p of the square RGB patches in pixels, and `channels` C_z of the latent."""

    patch_size: int
    channels: int

    def __post_init__(self) -> None:
        require_components(self.width, self.channels, "pixel patches")

    @property
    def width(self) -> int:
        """Values of a patch, D = 3 p p."""
        return 3 * self.patch_size**2


class TexturePCA(nn.Module):
    """Images to the leading principal components of their patches and back, with the interface of the texture VAE.

    A latent pixel is a patch. `mean` (D,) is the patches' mean, `components` (C_z, D) the orthonormal directions,
    largest variance first; D runs over colours, then rows, then columns of a patch. An image side must be divisible
    by `downsampling`.
    """

    mean: Tensor
    components: Tensor

    def __init__(self, config: TexturePCAConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(config.width))
        self.register_buffer("components", torch.eye(config.channels, config.width))

    @classmethod
    def of_patches(cls, mean: Tensor, covariance: Tensor, config: TexturePCAConfig) -> Self:
        """The leading components of patches with this mean (D,) and covariance (D, D), both float64."""
        network = cls(config)
        components = leading_directions(covariance, config.channels)
        network.load_state_dict({"mean": mean.float(), "components": components.float()})
        return network

    @property
    def latent_channels(self) -> int:
        """Texture channels C_z."""
        return self.config.channels

    @property
    def downsampling(self) -> int:
        """Image pixels per latent pixel along one side."""
        return self.config.patch_size

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) in [-1, 1] -> components and logvar, each (B, C_z, h, w); the logvar is the smallest."""
        patches = F.pixel_unshuffle(images, self.config.patch_size) - self.mean[:, None, None]
        latents = torch.einsum("cd,bdhw->bchw", self.components, patches)
        return latents, torch.full_like(latents, LOGVAR_RANGE[0])

    def decode(self, latents: Tensor) -> Tensor:
        """Components (B, C_z, h, w) -> images (B, 3, H, W) around [-1, 1], not clamped."""
        patches = torch.einsum("cd,bchw->bdhw", self.components, latents) + self.mean[:, None, None]
        return F.pixel_shuffle(patches, self.config.patch_size)

"""Principal components of pixel patches as texture latents, fitted in seconds, and a trained decoder behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfd_cli.architecture import DECODER_PATCH, DEEPEST, require_components, require_counts, require_decoder
from sfd_cli.networks.gaussian import LOGVAR_RANGE
from sfd_cli.networks.image_correction import ImageCorrection
from sfd_cli.networks.precision import autocast
from sfd_cli.networks.principal import leading_directions


@dataclass(frozen=True)
class TexturePCAConfig:
    """The whole architecture: side p of the square RGB patches in pixels, and `channels` C_z of the latent.

    `decoder_channels` are the widths of the levels of the U-Net that corrects decoded images, the finest first; without
    them decoding is linear. `decoder_patch` and `norm_groups` are its own, see ImageCorrection.
    """

    patch_size: int
    channels: int
    decoder_channels: tuple[int, ...] = ()
    decoder_patch: int = DECODER_PATCH
    norm_groups: int = 8

    def __post_init__(self) -> None:
        # JSON has no tuples; a configuration read back must equal the one that was written.
        object.__setattr__(self, "decoder_channels", tuple(self.decoder_channels))
        require_counts(most=DEEPEST, patch_size=self.patch_size, decoder_patch=self.decoder_patch)
        require_components(self.width, self.channels, "pixel patches")
        require_decoder(self.decoder_channels, self.norm_groups)

    @property
    def width(self) -> int:
        """Values of a patch, D = 3 p p."""
        return 3 * self.patch_size**2


class TexturePCA(nn.Module):
    """Images to the leading principal components of their patches and back, with the interface of the texture VAE.

    A latent pixel is a patch. `mean` (D,) is the patches' mean, `components` (C_z, D) the orthonormal directions,
    largest variance first; D runs over colours, then rows, then columns of a patch. An image side must be divisible
    by `downsampling`.

    With `decoder_channels` a U-Net, `decoder`, adds what it thinks is missing to the image that the components span,
    and `deviations` (C_z,) are the standard deviations of the components, by which noise is measured in training.
    """

    mean: Tensor
    components: Tensor
    deviations: Tensor

    def __init__(self, config: TexturePCAConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(config.width))
        self.register_buffer("components", torch.eye(config.channels, config.width))
        self.decoder: ImageCorrection | None = None
        if config.decoder_channels:
            self.register_buffer("deviations", torch.ones(config.channels))
            self.decoder = ImageCorrection(config.decoder_channels, config.decoder_patch, config.norm_groups)

    @classmethod
    def of_patches(cls, mean: Tensor, covariance: Tensor, config: TexturePCAConfig) -> Self:
        """The leading components of patches with this mean (D,) and covariance (D, D), both float64.

        A decoder is there as at its initialisation, which draws from torch's generator.
        """
        network = cls(config)
        components = leading_directions(covariance, config.channels)
        network.mean.copy_(mean)
        network.components.copy_(components)
        if network.decoder is not None:
            variances = torch.einsum("cd,de,ce->c", components, covariance, components)
            network.deviations.copy_(variances.clamp_min(0).sqrt())
        return network

    @property
    def latent_channels(self) -> int:
        """Texture channels C_z."""
        return self.config.channels

    @property
    def downsampling(self) -> int:
        """Image pixels per latent pixel along one side."""
        return self.config.patch_size

    def forward(self, images: Tensor, noise: Tensor, level: Tensor, kept: Tensor) -> Tensor:
        """What training a decoder needs: images (B, 3, H, W) in [-1, 1], decoded from latents that were made worse.

        Args:
            images: to encode.
            noise: standard normal, (B, C_z, h, w).
            level: of the noise, (B, 1, 1, 1), see `noise_deviations`.
            kept: how many of the leading components are kept, (B, 1, 1, 1); the others become 0.
        """
        # The linear part is exact whatever the U-Net computes in.
        with autocast("fp32", images.device):
            latents, _ = self.encode(images)
            latents = latents + self.noise_deviations(level) * noise
            latents = latents * (torch.arange(self.config.channels, device=kept.device)[:, None, None] < kept)
        return self.decode(latents)

    def noise_deviations(self, level: Tensor) -> Tensor:
        """Standard deviations (B, C_z, 1, 1) of the noise of a level (B, 1, 1, 1) in each channel; needs a decoder.

        A level is measured by the root of the channels' mean variance. Where it is far below a channel's own spread the
        noise is the level, and it never exceeds the spread: 1 / sqrt(1 / spread^2 + 1 / level^2). So wrong is a sampled
        channel at most that is no better than a guess.
        """
        spread = self.deviations[:, None, None]
        measured = level * spread.square().mean().sqrt()
        return (spread**-2 + measured**-2).rsqrt()

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) in [-1, 1] -> components and logvar, each (B, C_z, h, w); the logvar is the smallest."""
        patches = F.pixel_unshuffle(images, self.config.patch_size) - self.mean[:, None, None]
        with autocast("fp32", images.device):
            latents = torch.einsum("cd,bdhw->bchw", self.components, patches)
        return latents, torch.full_like(latents, LOGVAR_RANGE[0])

    def decode(self, latents: Tensor) -> Tensor:
        """Components (B, C_z, h, w) -> images (B, 3, H, W) around [-1, 1], not clamped."""
        with autocast("fp32", latents.device):
            patches = torch.einsum("cd,bchw->bdhw", self.components, latents) + self.mean[:, None, None]
        images = F.pixel_shuffle(patches, self.config.patch_size)
        return images if self.decoder is None else images + self.decoder(images).float()

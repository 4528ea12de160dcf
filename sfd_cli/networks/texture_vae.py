"""The texture VAE: diffusers' KL autoencoder, with latent pixels optionally folded into channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfd_cli.architecture import DEEPEST, require_counts, require_levels
from sfd_cli.networks.gaussian import LOGVAR_RANGE, draw


@dataclass(frozen=True)
class TextureVAEConfig:
    """The whole architecture.

    `channels` is the latent's width before space-to-depth. Level 0 of `block_channels` is the finest; every
    level but the last halves the side. `attention_levels` are the levels whose residual blocks are each
    followed by attention. `space_to_depth` k folds k x k latent pixels into channels.
    """

    channels: int
    block_channels: tuple[int, ...]
    layers_per_block: int = 1
    attention_levels: tuple[int, ...] = ()
    mid_attention: bool = True
    norm_groups: int = 32
    space_to_depth: int = 1

    def __post_init__(self) -> None:
        # JSON has no tuples; a configuration read back must equal the one that was written.
        object.__setattr__(self, "block_channels", tuple(self.block_channels))
        object.__setattr__(self, "attention_levels", tuple(self.attention_levels))
        require_counts(channels=self.channels, space_to_depth=self.space_to_depth)
        require_counts(most=DEEPEST, layers_per_block=self.layers_per_block)
        require_levels(self.block_channels, self.norm_groups, self.attention_levels)


class TextureVAE(nn.Module):
    """Images to a diagonal Gaussian over texture latents, and back.

    An image side must be divisible by `downsampling`.
    """

    def __init__(self, config: TextureVAEConfig) -> None:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        super().__init__()
        self.config = config
        attention = [level in config.attention_levels for level in range(len(config.block_channels))]
        self.autoencoder = AutoencoderKL(
            in_channels=3,
            out_channels=3,
            down_block_types=tuple("AttnDownEncoderBlock2D" if here else "DownEncoderBlock2D" for here in attention),
            up_block_types=tuple("AttnUpDecoderBlock2D" if here else "UpDecoderBlock2D" for here in attention[::-1]),
            block_out_channels=config.block_channels,
            layers_per_block=config.layers_per_block,
            latent_channels=config.channels,
            norm_num_groups=config.norm_groups,
            mid_block_add_attention=config.mid_attention,
        )

    @property
    def latent_channels(self) -> int:
        """Texture channels C_z, space-to-depth included."""
        return self.config.channels * self.config.space_to_depth**2

    @property
    def downsampling(self) -> int:
        """Image pixels per latent pixel along one side, space-to-depth included."""
        return 2 ** (len(self.config.block_channels) - 1) * self.config.space_to_depth

    @property
    def _held(self) -> torch.dtype:
        """The dtype of the weights, which whoever loads an autoencoder with diffusers may choose."""
        return self.autoencoder.post_quant_conv.weight.dtype

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What training needs of images (B, 3, H, W) in [-1, 1] and posterior noise (B, C_z, h, w).

        Returns:
            The reconstruction (B, 3, H, W) of a posterior sample, and the posterior's mean and logvar.
        """
        mean, logvar = self.encode(images)
        return self.decode(draw(mean, logvar, noise)), mean, logvar

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) in [-1, 1] -> mean and logvar, each (B, C_z, h, w), logvar clamped to [-30, 20]."""
        moments = self.autoencoder.quant_conv(self.autoencoder.encoder(images.to(self._held)))
        mean, logvar = moments.chunk(2, dim=1)
        fold = self.config.space_to_depth
        return F.pixel_unshuffle(mean, fold), F.pixel_unshuffle(logvar.clamp(*LOGVAR_RANGE), fold)

    def decode(self, latents: Tensor) -> Tensor:
        """Texture latents (B, C_z, h, w) -> images (B, 3, H, W) around [-1, 1], not clamped."""
        unfolded = F.pixel_shuffle(latents.to(self._held), self.config.space_to_depth)
        return self.autoencoder.decoder(self.autoencoder.post_quant_conv(unfolded))


def to_signed(pixels: Tensor) -> Tensor:
    """uint8 images as the float32 images in [-1, 1] that the VAE takes."""
    return pixels.float() / 127.5 - 1


def to_pixels(images: Tensor, to_uint8: Literal["round", "truncate"] = "round") -> Tensor:
    """Images around [-1, 1] as uint8, clamped and rounded to the nearest level, or to the one below."""
    levels = (images.float().clamp(-1, 1) + 1) * 127.5
    return (levels.round() if to_uint8 == "round" else levels).to(torch.uint8)

"""An image and its patch tokens as the posterior of a composite latent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from sfd_cli.config import Settings
from sfd_cli.errors import UserError
from sfd_cli.networks.texture_vae import TextureVAE, to_signed
from sfd_cli.weights.models import SemanticCompressor, open_semantic, open_texture_vae

Posterior = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class CompositeEncoder:
    """The two frozen compressors of one composite latent, on one device; without semantics the second is None."""

    texture_vae: TextureVAE
    semantic: SemanticCompressor | None

    @classmethod
    def load(cls, settings: Settings, device: torch.device) -> Self:
        """The compressors at `settings.paths`.

        Raises:
            UserError: one is missing, or the texture VAE's grid is not the one that the settings promise.
        """
        texture_vae = open_texture_vae(settings).load().to(device)
        if settings.images.size != settings.grid * texture_vae.downsampling:
            side = settings.images.size / texture_vae.downsampling
            raise UserError(
                f"{settings.paths.texture_vae} makes a {side:g} x {side:g} latent of {settings.images.size} px images,"
                f" but the settings promise {settings.grid} x {settings.grid};"
                " run `sfd train-texture-vae` again, or change images.size or encoder.image_size"
            )
        semantic = None if settings.semvae.compressor == "none" else open_semantic(settings).load().to(device)
        return cls(texture_vae, semantic)

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each stream, in the order of the composite."""
        semantic = {} if self.semantic is None else {"semantic": self.semantic.config.channels}
        return {"texture": self.texture_vae.latent_channels, **semantic}

    def posteriors(self, pixels: Tensor, tokens: Tensor | None) -> dict[str, Posterior]:
        """Mean and logvar of each stream, (n, C, h, w) float32 each.

        Args:
            pixels: uint8 (n, 3, H, W).
            tokens: patch tokens of the same images, (n, N, D); not needed without semantics.
        """
        posteriors: dict[str, Posterior] = {"texture": self.texture_vae.encode(to_signed(pixels))}
        if self.semantic is not None:
            assert tokens is not None
            mean, logvar = self.semantic.encode(tokens.float())
            posteriors["semantic"] = (as_grid(mean), as_grid(logvar))
        return posteriors


def as_grid(values: Tensor) -> Tensor:
    """Tokens (B, N, C), row-major over a square grid, as an image (B, C, h, w)."""
    side = round(values.shape[1] ** 0.5)
    return values.transpose(1, 2).unflatten(2, (side, side))

"""What the texture VAE is trained for: images that come back from a small latent."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sfd_cli.config import TextureVAE
from sfd_cli.data.images import ImageReader
from sfd_cli.networks.gaussian import kl_divergence
from sfd_cli.networks.texture_vae import TextureVAEConfig
from sfd_cli.training.reconstruction import ImageFetcher, reconstruction_losses, signed_images


class TextureVAETask(ImageFetcher):
    """Reconstruct images: the reconstruction losses + `kl_weight` x KL.

    Args:
        reader: the images.
        latent_shape: (C_z, h, w) of one image's latent.
        section: the weights of the terms; the KL is summed over an image's latent.
    """

    def __init__(self, reader: ImageReader, latent_shape: tuple[int, int, int], section: TextureVAE) -> None:
        super().__init__(reader)
        self.latent_shape = latent_shape
        self.section = section

    def draw(self, generator: torch.Generator, count: int) -> dict[str, Tensor]:
        """The posterior's noise (count, C_z, h, w)."""
        return {"noise": torch.randn((count, *self.latent_shape), generator=generator, device=generator.device)}

    def losses(self, model: nn.Module, batch: dict[str, Tensor], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """The objective and its terms, means over the batch."""
        images = signed_images(batch)
        reconstruction, mean, logvar = model(images, draws["noise"])
        losses = reconstruction_losses(reconstruction, images, self.section)
        kl = kl_divergence(mean.float(), logvar.float()).mean()
        return losses | {"loss": losses["loss"] + self.section.kl_weight * kl, "kl": kl}


def network_config(section: TextureVAE) -> TextureVAEConfig:
    """The architecture that the settings describe."""
    return TextureVAEConfig(
        channels=section.channels,
        block_channels=tuple(section.block_channels),
        layers_per_block=section.layers_per_block,
        attention_levels=tuple(section.attention_levels),
        norm_groups=section.norm_groups,
        space_to_depth=section.space_to_depth,
    )

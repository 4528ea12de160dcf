"""What the decoder behind principal components is trained for: clean images from latents that are not quite right."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sfd_cli.config import TextureVAE
from sfd_cli.data.images import ImageReader
from sfd_cli.training.reconstruction import ImageFetcher, reconstruction_losses, signed_images


class TextureDecoderTask(ImageFetcher):
    """Reconstruct images from noisy components, by the reconstruction losses of the texture VAE.

    A transformer's small errors in a linear code are speckle and seams. Noise of every level up to `decoder_noise`,
    most of it small, teaches the decoder to take them away; images of fewer components, `decoder_keep` of them at
    least, teach it to draw the details that a sample has wrong.

    Args:
        reader: the images.
        latent_shape: (C_z, h, w) of one image's latent.
        section: the weights of the terms, `decoder_noise` and `decoder_keep`.
    """

    def __init__(self, reader: ImageReader, latent_shape: tuple[int, int, int], section: TextureVAE) -> None:
        super().__init__(reader)
        self.latent_shape = latent_shape
        self.section = section

    def draw(self, generator: torch.Generator, count: int) -> dict[str, Tensor]:
        """Standard normal noise (count, C_z, h, w); (count, 1, 1, 1): its level and how many components are kept."""
        device = generator.device
        noise = torch.randn((count, *self.latent_shape), generator=generator, device=device)
        uniform = torch.rand((count, 1, 1, 1), generator=generator, device=device)
        fewest = math.ceil(self.section.decoder_keep * self.latent_shape[0])
        kept = torch.randint(fewest, self.latent_shape[0] + 1, (count, 1, 1, 1), generator=generator, device=device)
        return {"noise": noise, "level": self.section.decoder_noise * uniform.square(), "kept": kept}

    def losses(self, model: nn.Module, batch: dict[str, Tensor], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """The objective and its terms, means over the batch."""
        images = signed_images(batch)
        return reconstruction_losses(model(images, draws["noise"], draws["level"], draws["kept"]), images, self.section)

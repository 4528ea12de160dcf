"""What the texture VAE is trained for: images that come back from a small latent."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from sfd_cli.config import TextureVAE
from sfd_cli.data.images import ImageReader
from sfd_cli.networks.gaussian import kl_divergence
from sfd_cli.networks.texture_vae import TextureVAEConfig, to_signed

# A set that takes no more than this once decoded is decoded once, not in every epoch.
KEPT_BYTES = 1 << 30


class TextureVAETask:
    """Reconstruct images: L1 + `l2_weight` x MSE + `edge_weight` x L1 of the image gradients + `kl_weight` x KL.

    Large VAEs add perceptual and adversarial losses, which need networks of their own. At this size the squared
    error, which punishes a wrong colour most, and the gradient term, which punishes a blurred edge, do their part.

    Args:
        reader: the images.
        latent_shape: (C_z, h, w) of one image's latent.
        section: the weights of the terms; the KL is summed over an image's latent.
    """

    def __init__(self, reader: ImageReader, latent_shape: tuple[int, int, int], section: TextureVAE) -> None:
        self.reader = reader
        self.latent_shape = latent_shape
        self.section = section
        count = len(reader.manifest)
        fits = 3 * reader.size**2 * count <= KEPT_BYTES
        self.kept = reader.read(range(count)).numpy() if fits else None

    def fetch(self, indices: np.ndarray, flips: np.ndarray) -> dict[str, Tensor]:
        """Images (B, 3, H, W) uint8, and which are to be mirrored (B,).

        Arithmetic is left to `losses`: torch's threads of a second pool would slow down those that train.
        """
        pixels = self.reader.read(indices.tolist()) if self.kept is None else torch.from_numpy(self.kept[indices])
        return {"pixels": pixels, "mirrored": torch.from_numpy(flips)}

    def draw(self, generator: torch.Generator, count: int) -> dict[str, Tensor]:
        """The posterior's noise (count, C_z, h, w)."""
        return {"noise": torch.randn((count, *self.latent_shape), generator=generator, device=generator.device)}

    def losses(self, model: nn.Module, batch: dict[str, Tensor], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """The objective and its terms, means over the batch."""
        images = to_signed(batch["pixels"])
        images = torch.where(batch["mirrored"].bool()[:, None, None, None], images.flip(-1), images)
        reconstruction, mean, logvar = model(images, draws["noise"])
        error = reconstruction.float() - images
        l1 = error.abs().mean()
        edge = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        kl = kl_divergence(mean, logvar).mean()
        mse = error.square().mean()
        weights = self.section
        loss = l1 + weights.l2_weight * mse + weights.edge_weight * edge + weights.kl_weight * kl
        return {"loss": loss, "l1": l1, "mse": mse, "edge": edge, "kl": kl}


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

"""Images that are to come back: how they are fetched, and how wrong the ones that came back are."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sfd_cli.config import TextureVAE
from sfd_cli.data.images import ImageReader
from sfd_cli.networks.texture_vae import to_signed

# A set that takes no more than this once decoded is decoded once, not in every epoch.
KEPT_BYTES = 1 << 30


class ImageFetcher:
    """The part of a training task that fetches images.

    Args:
        reader: the images.
    """

    def __init__(self, reader: ImageReader) -> None:
        self.reader = reader
        count = len(reader.manifest)
        fits = 3 * reader.size**2 * count <= KEPT_BYTES
        self.kept = reader.read(range(count)).numpy() if fits else None

    def fetch(self, indices: np.ndarray, flips: np.ndarray) -> dict[str, Tensor]:
        """Images (B, 3, H, W) uint8, and which are to be mirrored (B,).

        Arithmetic is left to `losses`: torch's threads of a second pool would slow down those that train.
        """
        pixels = self.reader.read(indices.tolist()) if self.kept is None else torch.from_numpy(self.kept[indices])
        return {"pixels": pixels, "mirrored": torch.from_numpy(flips)}


def signed_images(batch: dict[str, Tensor]) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] of what `ImageFetcher.fetch` gave, mirrored where they are to be."""
    images = to_signed(batch["pixels"])
    return torch.where(batch["mirrored"].bool()[:, None, None, None], images.flip(-1), images)


def reconstruction_losses(reconstruction: Tensor, images: Tensor, weights: TextureVAE) -> dict[str, Tensor]:
    """L1 + `l2_weight` x MSE + `edge_weight` x L1 of the image gradients, and the terms; means over the batch.

    Large VAEs add perceptual and adversarial losses, which need networks of their own. At this size the squared
    error, which punishes a wrong colour most, and the gradient term, which punishes a blurred edge, do their part.
    """
    error = reconstruction.float() - images
    l1 = error.abs().mean()
    edge = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    mse = error.square().mean()
    return {"loss": l1 + weights.l2_weight * mse + weights.edge_weight * edge, "l1": l1, "mse": mse, "edge": edge}

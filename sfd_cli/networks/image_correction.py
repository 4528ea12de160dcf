"""What to add to an image that a linear code has left speckled and seamed: a small U-Net."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class ImageCorrection(nn.Module):
    """A convolutional U-Net over images whose squares of pixels are folded into channels; 0 before it is trained.

    Args:
        channels: width of each level, the finest first; every level but the last halves the side.
        patch: side of the squares, pixels. An image side must be divisible by `patch` x 2^(levels - 1).
        norm_groups: groups of the group norms; must divide every width.
    """

    def __init__(self, channels: Sequence[int], patch: int, norm_groups: int) -> None:
        from diffusers.models.unets.unet_2d import UNet2DModel

        super().__init__()
        self.patch = patch
        levels = len(channels)
        self.unet = UNet2DModel(
            in_channels=3 * patch**2,
            out_channels=3 * patch**2,
            down_block_types=("DownBlock2D",) * levels,
            up_block_types=("UpBlock2D",) * levels,
            block_out_channels=tuple(channels),
            layers_per_block=1,
            norm_num_groups=norm_groups,
            add_attention=False,
        )
        nn.init.zeros_(self.unet.conv_out.weight)
        nn.init.zeros_(self.unet.conv_out.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) around [-1, 1] -> what to add to them, of that shape, in the format of autocast."""
        # The level of noise is not told: of a sampled latent nobody knows it.
        return F.pixel_shuffle(self.unet(F.pixel_unshuffle(images, self.patch), 0).sample, self.patch)

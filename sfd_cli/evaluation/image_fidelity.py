"""How near an image comes to another one, pixel by pixel: PSNR and SSIM, of 8-bit images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sfd_cli.evaluation.reasons import NotComputable

PEAK = 255.0
LEAST_ERROR = 1e-4
"""Mean squared error below which a PSNR grows no further, so that equal images have 88 dB and a mean exists."""
RADIUS = 5
SIGMA = 1.5
K1, K2 = 0.01, 0.03


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, (n,) float64, of uint8 images (n, 3, H, W), over all pixels and channels."""
    error = (images.double() - others.double()).square().mean((1, 2, 3))
    return 10 * torch.log10(PEAK**2 / error.clamp_min(LEAST_ERROR))


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004, Equation 13), (n,) float64, of uint8 images (n, 3, H, W).

    Their constants: a Gaussian window of 11 x 11 pixels with a standard deviation of 1.5, K1 = 0.01, K2 = 0.03; the
    mean over all places where the window fits, and over the three colour channels.

    Raises:
        NotComputable: the images are smaller than the window.
    """
    x, y = images.double(), others.double()
    if min(x.shape[-2:]) < 2 * RADIUS + 1:
        raise NotComputable(f"images of {x.shape[-1]}x{x.shape[-2]} pixels are smaller than SSIM's window of 11x11")
    mean_x, mean_y = _blurred(x), _blurred(y)
    variances = _blurred(x * x) - mean_x.square() + _blurred(y * y) - mean_y.square()
    covariance = _blurred(x * y) - mean_x * mean_y
    c1, c2 = (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    return (luminance * (2 * covariance + c2) / (variances + c2)).mean((1, 2, 3))


def _blurred(images: Tensor) -> Tensor:
    """The Gaussian window's mean at every place where it fits: (n, C, H, W) -> (n, C, H - 10, W - 10)."""
    offsets = torch.arange(-RADIUS, RADIUS + 1, dtype=images.dtype, device=images.device)
    window = torch.exp(-offsets.square() / (2 * SIGMA**2))
    window = (window / window.sum()).expand(images.shape[1], 1, 1, -1)
    rows = F.conv2d(images, window, groups=images.shape[1])
    return F.conv2d(rows, window.transpose(2, 3), groups=images.shape[1])

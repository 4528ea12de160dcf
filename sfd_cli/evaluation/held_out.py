"""What the two compressors make of images that they were not trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sfd_cli.data.images import ImageReader, evenly_spaced
from sfd_cli.data.store import Store
from sfd_cli.evaluation.image_fidelity import psnr
from sfd_cli.files import atomic_path
from sfd_cli.networks.gaussian import kl_divergence
from sfd_cli.networks.parts import images_at_once
from sfd_cli.networks.semantic_vae import SemanticVAE
from sfd_cli.networks.texture_vae import TextureVAE, to_pixels, to_signed
from sfd_cli.progress import progress
from sfd_cli.weights.models import SemanticCompressor, TextureCompressor


def reconstruction_errors(reconstruction: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error and mean of 1 - cosine over the width, between two (B, N, D)."""
    cosine = F.cosine_similarity(reconstruction.float(), tokens, dim=-1)
    return F.mse_loss(reconstruction.float(), tokens), (1 - cosine).mean()


MOST_SCORED = 4096
"""Held-out images that a compressor is scored on at most, evenly spread; the mean PSNR of so many moves by 0.05 dB."""


def scored(held_out: np.ndarray) -> np.ndarray:
    """Rows (n,) that a compressor is scored on, of those that are held out: of ImageNet's 5 % a part."""
    return held_out[evenly_spaced(len(held_out), MOST_SCORED)]


@torch.no_grad()
def semantic_scores(
    model: SemanticCompressor, store: Store, rows: np.ndarray, batch_size: int, device: torch.device
) -> dict[str, Any]:
    """Reconstruction of the posterior means and latent statistics of held-out images, unflipped.

    Returns:
        mse, cosine (similarity, 1 is perfect), of a VAE kl (nats per image), images, and latent_mean and latent_std of
        every channel.
    """
    model.eval()
    totals = dict.fromkeys(("mse", "cosine", *(("kl",) if isinstance(model, SemanticVAE) else ())), 0.0)
    latents = []
    for start in progress(range(0, len(rows), batch_size), "held-out features", unit="batch"):
        batch = rows[start : start + batch_size]
        tokens = torch.from_numpy(store.read("tokens", batch, np.zeros(len(batch), np.int64))).float().to(device)
        mean, logvar = model.encode(tokens)
        mse, distance = reconstruction_errors(model.decode(mean), tokens)
        totals["mse"] += mse.item() * len(batch)
        totals["cosine"] += (1 - distance.item()) * len(batch)
        if "kl" in totals:
            totals["kl"] += kl_divergence(mean, logvar).sum().item()
        latents.append(mean.flatten(0, 1).cpu().double())
    stacked = torch.cat(latents)
    return {
        "images": len(rows),
        **{name: total / len(rows) for name, total in totals.items()},
        "latent_mean": stacked.mean(0).tolist(),
        "latent_std": stacked.std(0).tolist(),
    }


@torch.no_grad()
def texture_scores(
    model: TextureCompressor, reader: ImageReader, rows: np.ndarray, batch_size: int, device: torch.device
) -> dict[str, Any]:
    """Mean PSNR (dB, of 8-bit images) of decoded posterior means and, of a VAE, KL (nats per image) at `rows`."""
    ratios, kl = [], []
    batches = [rows[start : start + batch_size].tolist() for start in range(0, len(rows), batch_size)]
    for pixels in progress(reader.iterate(batches), "held-out images", len(batches), unit="batch"):
        for part in pixels.split(images_at_once(reader.size)):
            mean, logvar = model.encode(to_signed(part).to(device))
            decoded = to_pixels(model.decode(mean)).cpu()
            ratios.append(psnr(decoded, part))
            kl.append(kl_divergence(mean, logvar).cpu())
    scores = {"images": len(rows), "psnr": torch.cat(ratios).mean().item()}
    return scores | ({"kl": torch.cat(kl).mean().item()} if isinstance(model, TextureVAE) else {})


@torch.no_grad()
def save_reconstructions(
    model: TextureCompressor, reader: ImageReader, rows: np.ndarray, device: torch.device, path: Path
) -> None:
    """A PNG with the images at `rows` above their reconstructions, enlarged to be looked at."""
    pixels = reader.read(rows.tolist())
    mean, _ = model.encode(to_signed(pixels).to(device))
    both = torch.stack([pixels, to_pixels(model.decode(mean)).cpu()])  # (2, n, 3, H, W)
    sheet = both.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).numpy()  # (2 H, n W, 3)
    zoom = max(128 // reader.size, 1)
    picture = Image.fromarray(sheet)
    picture = picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
    with atomic_path(path) as temporary:
        picture.save(temporary, "PNG")

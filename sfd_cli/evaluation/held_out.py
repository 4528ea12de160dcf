"""What the two compressors make of images that they were not trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from sfd_cli.data.images import ImageReader, evenly_spaced
from sfd_cli.data.store import Store
from sfd_cli.distributed.processes import ALONE, Processes
from sfd_cli.evaluation.dealing import gathered, in_turn, rounds_of
from sfd_cli.evaluation.image_fidelity import psnr
from sfd_cli.files import atomic_path
from sfd_cli.networks.gaussian import kl_divergence
from sfd_cli.networks.parts import images_at_once
from sfd_cli.networks.semantic_vae import SemanticVAE
from sfd_cli.networks.texture_vae import TextureVAE, to_pixels, to_signed
from sfd_cli.progress import progress
from sfd_cli.weights.models import SemanticCompressor, TextureCompressor

T = TypeVar("T")
N = TypeVar("N", bound=nn.Module)


def reconstruction_errors(reconstruction: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error and mean of 1 - cosine over the width, between two (B, N, D)."""
    cosine = F.cosine_similarity(reconstruction.float(), tokens, dim=-1)
    return F.mse_loss(reconstruction.float(), tokens), (1 - cosine).mean()


MOST_SCORED = 4096
"""Held-out images that a compressor is scored on at most, evenly spread; the mean PSNR of so many moves by 0.05 dB."""


def scored(held_out: np.ndarray) -> np.ndarray:
    """Rows (n,) that a compressor is scored on, of those that are held out: of ImageNet's 5 % a part."""
    return held_out[evenly_spaced(len(held_out), MOST_SCORED)]


def the_first(network: N | None, processes: Processes) -> N:
    """The first process's network, in every process: others may have none, or have taken no part in its averages.

    It is on the CPU where there are several.
    """
    if processes.count > 1 and processes.is_main and network is not None:
        network.cpu()  # what lies on a GPU would be sent to the GPU of the same number
    found = processes.broadcast(network)
    assert found is not None
    return found


def semantic_scores(
    model: SemanticCompressor,
    store: Store,
    rows: np.ndarray,
    batch_size: int,
    device: torch.device,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """Reconstruction of the posterior means and latent statistics of held-out images, unflipped.

    The processes take batches in turn and all call this alike, with the same model.

    Returns:
        mse, cosine (similarity, 1 is perfect), of a VAE kl (nats per image), images, and latent_mean and latent_std of
        every channel; in the first process, and nothing in the others.
    """
    batches = batches_of(rows, batch_size)
    own = semantic_parts(model, store, in_turn(batches, processes), device)
    return semantic_summary(_in_order(own, "held-out features", len(batches), processes), len(rows))


SemanticPart = tuple[dict[str, float], Tensor]
"""Of a batch, sums over its images of mse, cosine and kl, and the posterior means (n N, C_s) float64 on the CPU."""


@torch.no_grad()
def semantic_parts(
    model: SemanticCompressor, store: Store, batches: Iterable[np.ndarray], device: torch.device
) -> Iterator[SemanticPart]:
    """What `semantic_scores` are made of, of batches of rows."""
    model.eval()
    for batch in batches:
        tokens = torch.from_numpy(store.read("tokens", batch, np.zeros(len(batch), np.int64))).float().to(device)
        mean, logvar = model.encode(tokens)
        mse, distance = reconstruction_errors(model.decode(mean), tokens)
        found = {"mse": mse.item() * len(batch), "cosine": (1 - distance.item()) * len(batch)}
        if isinstance(model, SemanticVAE):
            found["kl"] = kl_divergence(mean, logvar).sum().item()
        yield found, mean.flatten(0, 1).cpu().double()


def semantic_summary(parts: Iterable[SemanticPart], images: int) -> dict[str, Any]:
    """`semantic_scores` of the parts of so many images, in their order; nothing of none."""
    found = list(parts)
    if not found:
        return {}
    totals = dict.fromkeys(found[0][0], 0.0)
    for sums, _ in found:
        totals = {name: total + sums[name] for name, total in totals.items()}
    stacked = torch.cat([means for _, means in found])
    return {
        "images": images,
        **{name: total / images for name, total in totals.items()},
        "latent_mean": stacked.mean(0).tolist(),
        "latent_std": stacked.std(0).tolist(),
    }


def batches_of(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """`rows` in batches of `size`, the last of which may be smaller."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


@torch.no_grad()
def texture_scores(
    model: TextureCompressor,
    reader: ImageReader,
    rows: np.ndarray,
    batch_size: int,
    device: torch.device,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """Mean PSNR (dB, of 8-bit images) of decoded posterior means and, of a VAE, KL (nats per image) at `rows`.

    The processes take batches in turn and all call this alike, with the same model; the scores are the first one's, and
    others get nothing.
    """
    batches = batches_of(rows, batch_size)

    def returned(pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = model.encode(to_signed(pixels).to(device))
        return psnr(to_pixels(model.decode(mean)).cpu(), pixels), kl_divergence(mean, logvar).cpu()

    def share() -> Iterator[tuple[Tensor, Tensor]]:
        for pixels in reader.iterate([batch.tolist() for batch in in_turn(batches, processes)]):
            parts = [returned(part) for part in pixels.split(images_at_once(reader.size))]
            yield torch.cat([ratios for ratios, _ in parts]), torch.cat([kl for _, kl in parts])

    found = list(_in_order(share(), "held-out images", len(batches), processes))
    if not processes.is_main:
        return {}
    ratios, kl = (torch.cat(parts).mean().item() for parts in zip(*found, strict=True))
    return {"images": len(rows), "psnr": ratios} | ({"kl": kl} if isinstance(model, TextureVAE) else {})


def _in_order(own: Iterator[T], doing: str, batches: int, processes: Processes) -> Iterable[T]:
    found = gathered(own, rounds_of(batches, processes), processes)
    return progress(found, doing, batches, unit="batch", silent=not processes.is_main)


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

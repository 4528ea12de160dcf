"""`sfd train-texture-vae`: a small KL autoencoder trained on the images, or published weights imported."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from sfd_cli.artifacts.fingerprints import finished
from sfd_cli.artifacts.output import CHECKPOINTS, StageOutput
from sfd_cli.config import Settings
from sfd_cli.config import TextureVAE as TextureVAESettings
from sfd_cli.data.images import ImageManifest, ImageReader
from sfd_cli.data.order import EpochSampler
from sfd_cli.data.validation_split import validation_split
from sfd_cli.device import choose_device
from sfd_cli.errors import UserError
from sfd_cli.files import atomic_path, write_json
from sfd_cli.formats.model_folder import save_model
from sfd_cli.messages import say
from sfd_cli.networks.gaussian import kl_divergence
from sfd_cli.networks.texture_vae import TextureVAE, TextureVAEConfig, to_pixels, to_signed
from sfd_cli.processes import Processes
from sfd_cli.stages.train_semvae import vae_loop
from sfd_cli.training.fit import train
from sfd_cli.weights.models import open_texture_vae

STAGE = "train-texture-vae"
INERT = {"checkpoint_every", "log_every"}
PICTURED = 12
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

    def __init__(self, reader: ImageReader, latent_shape: tuple[int, int, int], section: TextureVAESettings) -> None:
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


def run(settings: Settings) -> dict[str, Any]:
    """Make `models/texture_vae/`, a picture of reconstructions and `metrics/texture_vae.json`.

    Returns:
        Held-out scores: PSNR in dB, KL in nats per image; and where things are.

    Raises:
        UserError: there are no images, or the weights to import do not fit the settings.
    """
    paths, section = settings.paths, settings.texture_vae
    finished(paths.images, "sfd prepare-data")
    manifest = ImageManifest.load(paths.images)
    inputs = {"images": manifest.fingerprint}
    if section.weights is not None:
        inputs["weights"] = open_texture_vae(settings, source=section.weights).fingerprint
    chosen = section.model_dump(exclude=INERT | {"weights"}, mode="json") | {"image_size": settings.images.size}
    inert = section.model_dump(include=INERT | {"weights"}, mode="json")
    reader = ImageReader(manifest, settings.images.size, settings.runtime.workers)
    pictures = paths.metrics / "texture_vae"
    output = StageOutput(paths.texture_vae, STAGE, chosen, inputs, paths.metrics, inert)
    processes = Processes.join()
    if section.weights is not None and processes.is_main and not output.recorded():
        # Entering makes room by putting another model aside, so weights that do not fit are refused before.
        _imported(settings)
    with output if processes.is_main else nullcontext():
        if processes.broadcast(output.complete):
            if processes.is_main:
                say(f"{output.folder} is up to date")
        else:
            facts = _make(settings, reader, output, pictures, processes)
            if processes.is_main:
                output.finish(**facts)
        if processes.is_main:
            pictures.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(output.folder / CHECKPOINTS, ignore_errors=True)
            write_json(paths.metrics / "texture_vae.json", output.facts)
    if not processes.is_main:
        return {}
    return output.facts | {"folder": str(paths.texture_vae), "picture": str(pictures / "reconstructions.png")}


def _make(
    settings: Settings, reader: ImageReader, output: StageOutput, pictures: Path, processes: Processes
) -> dict[str, Any]:
    section, device = settings.texture_vae, processes.device(choose_device(settings.runtime.device))
    training, held_out = validation_split(len(reader.manifest), section.holdout)
    if section.weights is not None:
        shutil.rmtree(pictures / "plots", ignore_errors=True)  # curves of a model that was trained here before
        model = _imported(settings)
    else:
        model = _trained(settings, reader, training, output, device)
    if not processes.is_main:
        return {}
    model.to(device).eval()
    scores = evaluate(model, reader, held_out, section.batch_size, device)
    save_model(output.folder, "TextureVAE", model.config, {"model": model.state_dict()}, {"held_out": scores})
    shown = held_out[:: max(len(held_out) // PICTURED, 1)][:PICTURED]
    save_reconstructions(model, reader, shown, device, pictures / "reconstructions.png")
    return scores


def _trained(
    settings: Settings, reader: ImageReader, training: np.ndarray, output: StageOutput, device: torch.device
) -> TextureVAE:
    section = settings.texture_vae
    torch.manual_seed(section.seed)
    model = TextureVAE(architecture(section))
    side = settings.images.size // model.downsampling
    task = TextureVAETask(reader, (model.latent_channels, side, side), section)
    result = train(
        task,
        model,
        EpochSampler(len(reader.manifest), section.batch_size, section.seed, training),
        vae_loop(section),
        output.folder / CHECKPOINTS,
        settings.paths.metrics / "texture_vae",
        device,
        "texture VAE",
    )
    return result.model


def architecture(section: TextureVAESettings) -> TextureVAEConfig:
    """The network that the settings ask for."""
    return TextureVAEConfig(
        channels=section.channels,
        block_channels=tuple(section.block_channels),
        layers_per_block=section.layers_per_block,
        attention_levels=tuple(section.attention_levels),
        norm_groups=section.norm_groups,
        space_to_depth=section.space_to_depth,
    )


@torch.no_grad()
def evaluate(
    model: TextureVAE, reader: ImageReader, rows: np.ndarray, batch_size: int, device: torch.device
) -> dict[str, Any]:
    """Mean PSNR (dB, of 8-bit images) of decoded posterior means and KL (nats per image) of the images at `rows`."""
    psnr, kl = [], []
    batches = [rows[start : start + batch_size].tolist() for start in range(0, len(rows), batch_size)]
    for pixels in tqdm(reader.iterate(batches), "held-out images", len(batches), unit="batch", disable=None):
        mean, logvar = model.encode(to_signed(pixels).to(device))
        decoded = to_pixels(model.decode(mean)).cpu()
        error = (decoded.double() - pixels.double()).square().mean((1, 2, 3))
        psnr.append(10 * torch.log10(255.0**2 / error.clamp_min(1e-4)))
        kl.append(kl_divergence(mean, logvar).cpu())
    return {"images": len(rows), "psnr": torch.cat(psnr).mean().item(), "kl": torch.cat(kl).mean().item()}


@torch.no_grad()
def save_reconstructions(
    model: TextureVAE, reader: ImageReader, rows: np.ndarray, device: torch.device, path: Path
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


def _imported(settings: Settings) -> TextureVAE:
    """The network at `texture_vae.weights`, which must give the latent that the settings promise to other stages."""
    section = settings.texture_vae
    model = open_texture_vae(settings, source=section.weights).load()
    found = model.config
    told = (section.channels, tuple(section.block_channels), section.space_to_depth)
    if told != (found.channels, found.block_channels, found.space_to_depth):
        raise UserError(
            f"texture_vae.weights: {section.weights} has channels {found.channels}, block_channels"
            f" {list(found.block_channels)} and space_to_depth {found.space_to_depth}; set these in the"
            " section texture_vae"
        )
    return model

"""The texture compressors that `texture_vae.compressor` names; see the table TEXTURE_COMPRESSORS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from sfd_cli.config import Settings
from sfd_cli.config import TextureVAE as Section
from sfd_cli.data.images import ImageReader
from sfd_cli.data.moments import Moments
from sfd_cli.data.order import EpochSampler
from sfd_cli.distributed.processes import Processes, require_memory
from sfd_cli.networks.texture_pca import TexturePCA, TexturePCAConfig
from sfd_cli.networks.texture_vae import TextureVAE, TextureVAEConfig, to_signed
from sfd_cli.progress import progress
from sfd_cli.training.compressors import Compressor
from sfd_cli.training.fit import OnStep, fit
from sfd_cli.training.settings import vae_loop
from sfd_cli.training.step import Task
from sfd_cli.training.texture_decoder_task import TextureDecoderTask
from sfd_cli.training.texture_vae_task import TextureVAETask, network_config

N = TypeVar("N", TextureVAE, TexturePCA)


@dataclass(frozen=True)
class TextureFitting:
    """What a texture compressor is fitted to.

    Attributes:
        settings: of which the sections `texture_vae`, `images` and `paths` are read.
        reader: of the images, uint8 (n, 3, S, S).
        rows: of the training images.
        device: this process's own.
        checkpoints: folder for what a training resumes from.
        on_step: what a training calls after every step.
    """

    settings: Settings
    reader: ImageReader
    rows: np.ndarray
    device: torch.device
    checkpoints: Path
    on_step: Sequence[OnStep] = ()

    @property
    def section(self) -> Section:
        """The section `texture_vae`."""
        return self.settings.texture_vae

    @property
    def flips(self) -> int:
        """Views of every image to fit: 2 (as is, flipped), or 1 (as is)."""
        return self.settings.images.flips


def _check_batch(fitting: TextureFitting, processes: Processes) -> None:
    section, settings = fitting.section, fitting.settings
    vae_loop(section, fitting.device).micro_batch(processes.count)
    require_memory(section.batch_size, (section.latent_channels, settings.grid, settings.grid), fitting.device)


def train_vae(fitting: TextureFitting) -> TextureVAE:
    """Train a texture VAE on the training images, from the last checkpoint."""
    torch.manual_seed(fitting.section.seed)
    return _trained(fitting, TextureVAE(network_config(fitting.section)), TextureVAETask, "texture VAE")


def _trained(
    fitting: TextureFitting,
    model: N,
    task: Callable[[ImageReader, tuple[int, int, int], Section], Task],
    description: str,
) -> N:
    """The model after all steps, from the last checkpoint, trained for what the task says of images and latents."""
    section, paths = fitting.section, fitting.settings.paths
    side = fitting.reader.size // model.downsampling
    return fit(
        task(fitting.reader, (model.latent_channels, side, side), section),
        model,
        EpochSampler(len(fitting.reader.manifest), section.batch_size, section.seed, fitting.rows, fitting.flips),
        vae_loop(section, fitting.device),
        fitting.checkpoints,
        paths.metrics / "texture_vae",
        fitting.device,
        description,
        fitting.on_step,
    ).model


def has_decoder(settings: Settings) -> bool:
    """Whether there is a network to train behind the components."""
    return bool(settings.texture_vae.decoder_channels)


def _check_decoder(fitting: TextureFitting, processes: Processes) -> None:
    if has_decoder(fitting.settings):
        _check_batch(fitting, processes)


def fit_components(fitting: TextureFitting) -> TexturePCA:
    """Principal components of the training images' patches, and a decoder behind them where there is to be one.

    The decoder is trained from the last checkpoint. Every process calls this then, and rank 0 fits the components.
    """
    if not has_decoder(fitting.settings):
        return _components(_patch_moments(fitting), fitting.section)
    processes = Processes.join()
    moments = processes.broadcast(_patch_moments(fitting) if processes.is_main else None)
    assert moments is not None
    torch.manual_seed(fitting.section.seed)
    return _trained(fitting, _components(moments, fitting.section), TextureDecoderTask, "texture decoder")


def _components(moments: Moments, section: Section) -> TexturePCA:
    config = TexturePCAConfig(
        section.patch_size,
        section.channels,
        decoder_channels=tuple(section.decoder_channels),
        norm_groups=section.norm_groups,
    )
    return TexturePCA.of_patches(torch.from_numpy(moments.mean), torch.from_numpy(moments.covariance()), config)


def _patch_moments(fitting: TextureFitting) -> Moments:
    """Moments of the patches of the training images and of their mirror images, with the scatter matrix."""
    patch_size, size = fitting.section.patch_size, fitting.section.batch_size
    gathered = Moments.none(3 * patch_size**2, scatter=True)
    batches = [fitting.rows[start : start + size].tolist() for start in range(0, len(fitting.rows), size)]
    for pixels in progress(fitting.reader.iterate(batches), "principal components", len(batches)):
        patches = F.pixel_unshuffle(to_signed(pixels), patch_size)
        gathered = gathered.merge(Moments.of(patches.numpy(), channel_axis=1, scatter=True))
    return gathered.merge(_mirrored(gathered, patch_size)) if fitting.flips == 2 else gathered


def _mirrored(moments: Moments, patch_size: int) -> Moments:
    """Moments of the patches of the mirrored images: their patches are the same ones, with the columns reversed."""
    patch = torch.arange(len(moments.mean))[:, None, None]
    order = F.pixel_unshuffle(F.pixel_shuffle(patch, patch_size).flip(-1), patch_size).flatten().numpy()
    return Moments(moments.count, moments.mean[order], moments.deviations[np.ix_(order, order)])


VAE = Compressor(TextureVAE, TextureVAEConfig, train_vae, _check_batch, is_trained=lambda settings: True)
PCA = Compressor(TexturePCA, TexturePCAConfig, fit_components, _check_decoder, is_trained=has_decoder)

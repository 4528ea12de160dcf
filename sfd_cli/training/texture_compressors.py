"""The texture compressors that `texture_vae.compressor` names; see the table TEXTURE_COMPRESSORS."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from sfd_cli.artifacts.produce import CHECKPOINTS
from sfd_cli.config import Settings
from sfd_cli.config import TextureVAE as Section
from sfd_cli.data.images import ImageReader
from sfd_cli.data.moments import Moments
from sfd_cli.data.order import EpochSampler
from sfd_cli.networks.texture_pca import TexturePCA, TexturePCAConfig
from sfd_cli.networks.texture_vae import TextureVAE, TextureVAEConfig, to_signed
from sfd_cli.processes import Processes
from sfd_cli.training.compressors import Compressor
from sfd_cli.training.fit import fit
from sfd_cli.training.settings import vae_loop
from sfd_cli.training.texture_vae_task import TextureVAETask, network_config


@dataclass(frozen=True)
class TextureFitting:
    """What a texture compressor is fitted to.

    Attributes:
        settings: of which the sections `texture_vae`, `images` and `paths` are read.
        reader: of the images, uint8 (n, 3, S, S).
        rows: of the training images.
        device: this process's own.
    """

    settings: Settings
    reader: ImageReader
    rows: np.ndarray
    device: torch.device

    @property
    def section(self) -> Section:
        """The section `texture_vae`."""
        return self.settings.texture_vae

    @property
    def flips(self) -> int:
        """Views of every image to fit: 2 (as is, flipped), or 1 (as is)."""
        return self.settings.images.flips


def _check_batch(fitting: TextureFitting, processes: Processes) -> None:
    vae_loop(fitting.section).micro_batch(processes.count)


def train_vae(fitting: TextureFitting) -> TextureVAE:
    """Train a texture VAE on the training images, from the last checkpoint."""
    section, paths = fitting.section, fitting.settings.paths
    torch.manual_seed(section.seed)
    model = TextureVAE(network_config(section))
    side = fitting.reader.size // model.downsampling
    return fit(
        TextureVAETask(fitting.reader, (model.latent_channels, side, side), section),
        model,
        EpochSampler(len(fitting.reader.manifest), section.batch_size, section.seed, fitting.rows, fitting.flips),
        vae_loop(section),
        paths.texture_vae / CHECKPOINTS,
        paths.metrics / "texture_vae",
        fitting.device,
        "texture VAE",
    ).model


def fit_components(fitting: TextureFitting) -> TexturePCA:
    """Principal components of the patches of the training images and of their mirror images."""
    section = fitting.section
    config = TexturePCAConfig(section.patch_size, section.channels)
    gathered, size = Moments.none(config.width, scatter=True), section.batch_size
    batches = [fitting.rows[start : start + size].tolist() for start in range(0, len(fitting.rows), size)]
    for pixels in tqdm(fitting.reader.iterate(batches), "principal components", len(batches), disable=None):
        patches = F.pixel_unshuffle(to_signed(pixels), config.patch_size)
        gathered = gathered.merge(Moments.of(patches.numpy(), channel_axis=1, scatter=True))
    if fitting.flips == 2:
        gathered = gathered.merge(_mirrored(gathered, config.patch_size))
    return TexturePCA.of_patches(torch.from_numpy(gathered.mean), torch.from_numpy(gathered.covariance()), config)


def _mirrored(moments: Moments, patch_size: int) -> Moments:
    """Moments of the patches of the mirrored images: their patches are the same ones, with the columns reversed."""
    patch = torch.arange(len(moments.mean))[:, None, None]
    order = F.pixel_unshuffle(F.pixel_shuffle(patch, patch_size).flip(-1), patch_size).flatten().numpy()
    return Moments(moments.count, moments.mean[order], moments.deviations[np.ix_(order, order)])


VAE = Compressor(TextureVAE, TextureVAEConfig, train_vae, _check_batch, is_trained=True)
PCA = Compressor(TexturePCA, TexturePCAConfig, fit_components)

"""What a compressor is, and the semantic ones that `semvae.compressor` names; see the table COMPRESSORS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import nn

from sfd_cli.architecture import require_components
from sfd_cli.config import SemVAE, Settings
from sfd_cli.data.moments import Moments
from sfd_cli.data.order import EpochSampler
from sfd_cli.data.store import Store
from sfd_cli.distributed.processes import Processes, require_memory
from sfd_cli.networks.semantic_pca import SemanticPCA, SemanticPCAConfig
from sfd_cli.networks.semantic_vae import SemanticVAE, SemanticVAEConfig
from sfd_cli.progress import progress
from sfd_cli.training.fit import OnStep, fit
from sfd_cli.training.semantic_vae_task import SemanticVAETask
from sfd_cli.training.settings import vae_loop


@dataclass(frozen=True)
class Fitting:
    """What a semantic compressor is fitted to.

    Attributes:
        settings: of which the sections `semvae`, `encoder` and `paths` are read.
        store: the feature store; its field `tokens` is (flips, N, D) float16, axis 0 being (as is, flipped) or (as is).
        rows: of the training images.
        device: this process's own.
        checkpoints: folder for what a training resumes from.
        on_step: what a training calls after every step.
    """

    settings: Settings
    store: Store
    rows: np.ndarray
    device: torch.device
    checkpoints: Path
    on_step: Sequence[OnStep] = ()

    @property
    def section(self) -> SemVAE:
        """The section `semvae`."""
        return self.settings.semvae

    @property
    def width(self) -> int:
        """Width D of the patch tokens."""
        return self.store.fields["tokens"].shape[-1]


F = TypeVar("F")


@dataclass(frozen=True)
class Compressor(Generic[F]):
    """One kind of semantic or texture compressor, fitted to an F.

    Attributes:
        network: class of the network, which encodes and decodes as SemanticVAE or TextureVAE does.
        config: its configuration dataclass; the door to models builds networks from both.
        fit: makes one.
        check: raises SettingError where the settings do not go with the tokens; called before anything is moved.
        is_trained: whether, by these settings, `fit` runs in every process and logs curves, rather than in rank 0 and
            without.
    """

    network: type[nn.Module]
    config: type
    fit: Callable[[F], Any]
    check: Callable[[F, Processes], None] = lambda fitting, processes: None
    is_trained: Callable[[Settings], bool] = lambda settings: False


def _check_batch(fitting: Fitting, processes: Processes) -> None:
    vae_loop(fitting.section, fitting.device).micro_batch(processes.count)
    tokens = fitting.store.fields["tokens"].shape[1]
    require_memory(fitting.section.batch_size, (tokens, fitting.section.channels), fitting.device)


def train_vae(fitting: Fitting) -> SemanticVAE:
    """Train a Semantic VAE on patch tokens, from the last checkpoint."""
    section, paths = fitting.section, fitting.settings.paths
    config = SemanticVAEConfig(
        fitting.width, section.channels, section.width, section.depth, section.heads, fitting.settings.encoder.tiles
    )
    torch.manual_seed(section.seed)
    return fit(
        SemanticVAETask(fitting.store, section.channels, section.kl_weight),
        SemanticVAE(config),
        EpochSampler(len(fitting.store), section.batch_size, section.seed, fitting.rows, fitting.store.flips),
        vae_loop(section, fitting.device),
        fitting.checkpoints,
        paths.metrics / "semvae",
        fitting.device,
        "Semantic VAE",
        fitting.on_step,
    ).model


def _check_components(fitting: Fitting, processes: Processes) -> None:
    require_components(fitting.width, fitting.section.channels)


def fit_components(fitting: Fitting) -> SemanticPCA:
    """Principal components of the training images' tokens, of all views that are stored."""
    section, gathered = fitting.section, Moments.none(fitting.width, scatter=True)
    starts = range(0, len(fitting.rows), section.batch_size)
    for start in progress(starts, "principal components", unit="batch"):
        tokens = fitting.store.read("tokens", fitting.rows[start : start + section.batch_size])
        gathered = gathered.merge(Moments.of(tokens, scatter=True))
    mean, covariance = torch.from_numpy(gathered.mean), torch.from_numpy(gathered.covariance())
    return SemanticPCA.of_tokens(mean, covariance, section.channels)


VAE = Compressor(SemanticVAE, SemanticVAEConfig, train_vae, _check_batch, is_trained=lambda settings: True)
PCA = Compressor(SemanticPCA, SemanticPCAConfig, fit_components, _check_components)
NONE = None
"""No semantics at all."""

"""`sfd train-texture-vae`: a small KL autoencoder trained on the images, or published weights imported."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from sfd_cli.artifacts.fingerprints import finished
from sfd_cli.artifacts.produce import CHECKPOINTS, produce
from sfd_cli.artifacts.recipe import Facts, Recipe
from sfd_cli.config import Settings, identity
from sfd_cli.data.images import ImageManifest, ImageReader
from sfd_cli.data.order import EpochSampler
from sfd_cli.data.validation_split import validation_split
from sfd_cli.errors import SettingError, UserError
from sfd_cli.files import write_json
from sfd_cli.formats.model_folder import save_model
from sfd_cli.networks.texture_vae import TextureVAE
from sfd_cli.processes import Processes
from sfd_cli.training.fit import fit
from sfd_cli.training.held_out import save_reconstructions, texture_scores
from sfd_cli.training.settings import vae_loop
from sfd_cli.training.texture_vae_task import TextureVAETask, network_config
from sfd_cli.weights.models import open_texture_vae

FREE = {"weights", "checkpoint_every", "log_every"}
PICTURED = 12


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
    chosen = identity(section, exclude=FREE, mode="json") | {"image_size": settings.images.size}
    facts = produce(
        Recipe("train-texture-vae", paths.texture_vae, chosen, inputs, identity(section, include=FREE, mode="json")),
        load=lambda processes: _load(settings, manifest, processes),
        make=lambda processes, job: _make(settings, job, processes),
        metrics=paths.metrics,
    )
    pictures = paths.metrics / "texture_vae"
    if Processes.join().is_main:
        pictures.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(paths.texture_vae / CHECKPOINTS, ignore_errors=True)
        write_json(paths.metrics / "texture_vae.json", facts)
    return facts | {"folder": str(paths.texture_vae), "picture": str(pictures / "reconstructions.png")}


@dataclass(frozen=True)
class _Job:
    """What there is to do: train on the training images, unless a network is imported, and score on the others."""

    reader: ImageReader
    training: np.ndarray
    held_out: np.ndarray
    imported: TextureVAE | None
    device: torch.device


def _load(settings: Settings, manifest: ImageManifest, processes: Processes) -> _Job:
    section = settings.texture_vae
    reader = ImageReader(manifest, settings.images.size, settings.runtime.workers)
    training, held_out = validation_split(len(manifest), section.holdout)
    imported = None if section.weights is None else _imported(settings)
    try:
        vae_loop(section).micro_batch(processes.count)
    except SettingError as error:
        raise UserError(f"texture_vae.{error.subject}", error.problem, error.remedy) from None
    return _Job(reader, training, held_out, imported, processes.device(settings.runtime.device))


def _make(settings: Settings, job: _Job, processes: Processes) -> Facts:
    """Train the VAE unless it is imported, score, save and picture it; the scores, in rank 0."""
    section, pictures = settings.texture_vae, settings.paths.metrics / "texture_vae"
    model = job.imported or _trained(settings, job)
    if not processes.is_main:
        return {}
    if job.imported:
        shutil.rmtree(pictures / "plots", ignore_errors=True)  # curves of a model that was trained here before
    model.to(job.device).eval()
    scores = texture_scores(model, job.reader, job.held_out, section.batch_size, job.device)
    weights = {"model": model.state_dict()}
    save_model(settings.paths.texture_vae, "TextureVAE", model.config, weights, {"held_out": scores})
    shown = job.held_out[:: max(len(job.held_out) // PICTURED, 1)][:PICTURED]
    save_reconstructions(model, job.reader, shown, job.device, pictures / "reconstructions.png")
    return scores


def _trained(settings: Settings, job: _Job) -> TextureVAE:
    section = settings.texture_vae
    torch.manual_seed(section.seed)
    model = TextureVAE(network_config(section))
    side = settings.images.size // model.downsampling
    return fit(
        TextureVAETask(job.reader, (model.latent_channels, side, side), section),
        model,
        EpochSampler(len(job.reader.manifest), section.batch_size, section.seed, job.training),
        vae_loop(section),
        settings.paths.texture_vae / CHECKPOINTS,
        settings.paths.metrics / "texture_vae",
        job.device,
        "texture VAE",
    ).model


def _imported(settings: Settings) -> TextureVAE:
    """The network at `texture_vae.weights`, which must give the latent that the settings promise to other stages."""
    section = settings.texture_vae
    model = open_texture_vae(settings, source=section.weights).load()
    wanted, found = asdict(network_config(section)), asdict(model.config)
    wrong = [key for key in ("channels", "block_channels", "space_to_depth") if found[key] != wanted[key]]
    if wrong:
        problem = " and ".join(f"{key} {found[key]} instead of {wanted[key]}" for key in wrong)
        raise UserError("texture_vae.weights", f"{section.weights} has {problem}", "set these in the section")
    return model

"""`sfd train-texture-vae`: the compressor of images, trained, fitted or imported, scored on held-out images."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from sfd_cli.artifacts.fingerprints import finished
from sfd_cli.artifacts.produce import produce
from sfd_cli.artifacts.recipe import Facts, Recipe
from sfd_cli.config import Settings, identity
from sfd_cli.data.images import ImageManifest, ImageReader
from sfd_cli.data.validation_split import validation_split
from sfd_cli.distributed.processes import Processes
from sfd_cli.errors import SettingError, UserError
from sfd_cli.evaluation.held_out import save_reconstructions, scored, texture_scores, the_first
from sfd_cli.files import write_json
from sfd_cli.formats.model_folder import save_model
from sfd_cli.networks.texture_vae import TextureVAE
from sfd_cli.tables import TEXTURE_COMPRESSORS
from sfd_cli.trackers.sending import tracked
from sfd_cli.trackers.tracker import require_trackers
from sfd_cli.training.compressors import Compressor
from sfd_cli.training.live_log import clear_log
from sfd_cli.training.texture_compressors import TextureFitting
from sfd_cli.training.texture_vae_task import network_config
from sfd_cli.weights.models import open_texture_vae

FREE = {"weights", "accumulate", "checkpoint_every", "log_every"}
PICTURED = 12


def run(settings: Settings) -> dict[str, Any]:
    """Make `models/texture_vae/`, a picture of reconstructions and `metrics/texture_vae.json`.

    Returns:
        Held-out scores: PSNR in dB and, of a VAE, KL in nats per image; and where things are.

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
    chosen |= identity(settings.images, include={"mirror"})
    free = identity(section, include=FREE, mode="json")
    recipe = Recipe("train-texture-vae", paths.texture_vae, chosen, inputs, free)
    facts = produce(
        recipe,
        load=lambda processes: _load(settings, manifest, processes, recipe.checkpoints),
        make=lambda processes, loaded: _make(settings, processes, *loaded),
        metrics=paths.metrics,
    )
    pictures = paths.metrics / "texture_vae"
    if Processes.join().is_main:
        pictures.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(recipe.checkpoints, ignore_errors=True)
        write_json(paths.metrics / "texture_vae.json", facts)
    return facts | {"folder": str(paths.texture_vae), "picture": str(pictures / "reconstructions.png")}


def _load(
    settings: Settings, manifest: ImageManifest, processes: Processes, checkpoints: Path
) -> tuple[TextureFitting, np.ndarray, TextureVAE | None]:
    """What the compressor is fitted to, the held-out images, and the network to import instead of fitting one."""
    require_trackers(settings)
    section = settings.texture_vae
    compressor: Compressor[TextureFitting] = TEXTURE_COMPRESSORS[section.compressor]
    reader = ImageReader(manifest, settings.images.size, settings.runtime.threads)
    training, held_out = validation_split(len(manifest), section.holdout)
    fitting = TextureFitting(settings, reader, training, processes.device(settings.runtime.device), checkpoints)
    if section.weights is not None:
        return fitting, held_out, _imported(settings)
    try:
        compressor.check(fitting, processes)
    except SettingError as error:
        raise UserError(f"texture_vae.{error.subject}", error.problem, error.remedy) from None
    return fitting, held_out, None


def _make(
    settings: Settings, processes: Processes, fitting: TextureFitting, held_out: np.ndarray, model: TextureVAE | None
) -> Facts:
    """Fit the compressor unless it is imported, score it in every process, save and picture it; rank 0's scores."""
    section, pictures = settings.texture_vae, settings.paths.metrics / "texture_vae"
    compressor: Compressor[TextureFitting] = TEXTURE_COMPRESSORS[section.compressor]
    has_curves = model is None and compressor.is_trained(settings)
    with tracked(settings, "texture_vae", processes.is_main) as feed:
        if model is None:
            fitted = compressor.fit(replace(fitting, on_step=feed.on_step)) if has_curves or processes.is_main else None
            model = the_first(fitted, processes)
        model.to(fitting.device).eval()
        scores = texture_scores(model, fitting.reader, scored(held_out), section.batch_size, fitting.device, processes)
        if not processes.is_main:
            return {}
        if not has_curves:
            clear_log(pictures)
        weights = {"model": model.state_dict()}
        save_model(settings.paths.texture_vae, type(model).__name__, model.config, weights, {"held_out": scores})
        shown = held_out[:: max(len(held_out) // PICTURED, 1)][:PICTURED]
        save_reconstructions(model, fitting.reader, shown, fitting.device, pictures / "reconstructions.png")
        feed.scores = scores
    return scores


def _imported(settings: Settings) -> TextureVAE:
    """The network at `texture_vae.weights`, which must give the latent that the settings promise to other stages."""
    section = settings.texture_vae
    model = open_texture_vae(settings, source=section.weights).load()
    if not isinstance(model, TextureVAE):
        problem = f"{section.weights} is a {type(model).__name__}, not a TextureVAE"
        raise UserError("texture_vae.weights", problem, "import another")
    wanted, found = asdict(network_config(section)), asdict(model.config)
    wrong = [key for key in ("channels", "block_channels", "space_to_depth") if found[key] != wanted[key]]
    if wrong:
        problem = " and ".join(f"{key} {found[key]} instead of {wanted[key]}" for key in wrong)
        raise UserError("texture_vae.weights", f"{section.weights} has {problem}", "set these in the section")
    return model

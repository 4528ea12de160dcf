"""`sfd train-semvae`: the compressor of stored patch tokens, fitted or imported, scored on held-out images."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sfd_cli.artifacts.fingerprints import finished
from sfd_cli.artifacts.produce import produce
from sfd_cli.artifacts.recipe import Facts, Recipe
from sfd_cli.config import Settings, identity
from sfd_cli.data.store import Store
from sfd_cli.data.validation_split import validation_split
from sfd_cli.devices import choose_device
from sfd_cli.distributed.processes import Processes
from sfd_cli.errors import SettingError, UserError
from sfd_cli.evaluation.held_out import scored, semantic_scores, the_first
from sfd_cli.files import write_json
from sfd_cli.formats.model_folder import save_model
from sfd_cli.networks.semantic_vae import SemanticVAE
from sfd_cli.tables import COMPRESSORS
from sfd_cli.trackers.sending import tracked
from sfd_cli.trackers.tracker import require_trackers
from sfd_cli.training.compressors import Compressor, Fitting
from sfd_cli.training.live_log import clear_log
from sfd_cli.training.settings import with_precision
from sfd_cli.weights.models import SemanticCompressor, open_semantic

# The digest of imported weights is among the inputs; where they lie does not matter.
FREE = {"weights", "compile", "accumulate", "checkpoint_every", "log_every"}


def run(settings: Settings) -> dict[str, Any]:
    """Make the semantic compressor in `models/semvae/` and its scores in `metrics/semvae.json`.

    It is fitted as the table COMPRESSORS says, or imported; with `compressor: none` only the record that there is
    none is written.

    Returns:
        The scores on held-out images: MSE, cosine similarity and, of a VAE, KL in nats per image.

    Raises:
        UserError: there are no features, or settings or the weights to import do not fit them.
    """
    paths, section = settings.paths, settings.semvae
    compressor: Compressor[Fitting] | None = COMPRESSORS[section.compressor]
    inputs = {}
    if compressor is not None:
        inputs["features"] = finished(paths.features, "sfd extract-features").fingerprint
    if section.weights is not None:
        inputs["weights"] = open_semantic(settings, section.weights).fingerprint
    settled = with_precision(section, choose_device(settings.runtime.device))
    chosen, free = identity(settled, exclude=FREE), identity(settled, include=FREE)
    recipe = Recipe("train-semvae", paths.semvae, chosen, inputs, free)
    facts = produce(
        recipe,
        load=lambda processes: (
            None if compressor is None else _load(settings, compressor, processes, recipe.checkpoints)
        ),
        make=lambda processes, job: {"compressor": "none"} if job is None else _make(settings, processes, *job),
        metrics=paths.metrics,
    )
    if Processes.join().is_main:
        log = paths.metrics / "semvae"
        log.mkdir(parents=True, exist_ok=True)
        if compressor is None or not compressor.is_trained(settings) or section.weights is not None:
            clear_log(log)
        shutil.rmtree(recipe.checkpoints, ignore_errors=True)
        write_json(paths.metrics / "semvae.json", facts)
    return facts | {"folder": str(paths.semvae)}


def _load(
    settings: Settings, compressor: Compressor, processes: Processes, checkpoints: Path
) -> tuple[Compressor, Fitting, np.ndarray, SemanticCompressor | None]:
    """The compressor, what it is fitted to, the held-out rows, and the network to import instead of fitting one."""
    require_trackers(settings)
    section, store = settings.semvae, Store(settings.paths.features)
    training, held_out = validation_split(len(store), section.holdout)
    fitting = Fitting(settings, store, training, processes.device(settings.runtime.device), checkpoints)
    if section.weights is not None:
        return compressor, fitting, held_out, _imported(settings, fitting.width)
    try:
        compressor.check(fitting, processes)
    except SettingError as error:
        raise UserError(f"semvae.{error.subject}", error.problem, error.remedy) from None
    return compressor, fitting, held_out, None


def _make(
    settings: Settings,
    processes: Processes,
    compressor: Compressor,
    fitting: Fitting,
    held_out: np.ndarray,
    model: SemanticCompressor | None,
) -> Facts:
    """Fit the compressor unless it is imported, score it in all processes, and save it; the scores, in rank 0."""
    with tracked(settings, "semvae", processes.is_main) as feed:
        if model is None:
            everywhere = compressor.is_trained(settings) or processes.is_main
            fitted = compressor.fit(replace(fitting, on_step=feed.on_step)) if everywhere else None
            model = the_first(fitted, processes)
        batch, device = settings.semvae.batch_size, fitting.device
        scores = semantic_scores(model.to(device), fitting.store, scored(held_out), batch, device, processes)
        if not processes.is_main:
            return {}
        feed.scores = scores
    weights = {"model": model.state_dict()}
    save_model(settings.paths.semvae, type(model).__name__, model.config, weights, {"held_out": scores})
    return scores


def _imported(settings: Settings, width: int) -> SemanticCompressor:
    """The network at `semvae.weights`, which must be of the settings' size and compress tokens `width` wide."""
    section, tiles = settings.semvae, settings.encoder.tiles
    model = open_semantic(settings, section.weights).load()
    if not isinstance(model, SemanticVAE):
        problem = f"{section.weights} is a {type(model).__name__}, not a SemanticVAE"
        raise UserError("semvae.weights", problem, "import another")
    found = {key: getattr(model.config, key) for key in ("channels", "width", "depth", "heads")}
    wrong = [
        f"{key} {value} instead of {getattr(section, key)}"
        for key, value in found.items()
        if value != getattr(section, key)
    ]
    if wrong:
        remedy = "set these in the section semvae (no tensor tells the heads)"
        raise UserError("semvae.weights", f"{section.weights} has {', '.join(wrong)}", remedy)
    if model.config.feature_width != width:
        raise UserError(
            "semvae.weights",
            f"{section.weights} compresses tokens {model.config.feature_width} wide, but {settings.paths.features}"
            f" has {width}",
            "extract features with the encoder that it was trained for",
        )
    if model.config.tiles != tiles:
        weights = model.state_dict()
        model = SemanticVAE(replace(model.config, tiles=tiles)).eval().requires_grad_(False)
        model.load_state_dict(weights)
    return model

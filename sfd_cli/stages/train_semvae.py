"""`sfd train-semvae`: the compressor of stored patch tokens, fitted or imported, scored on held-out images."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from sfd_cli.artifacts.fingerprints import finished
from sfd_cli.artifacts.output import CHECKPOINTS, StageOutput
from sfd_cli.config import SemVAE, Settings
from sfd_cli.data.moments import Moments
from sfd_cli.data.order import EpochSampler
from sfd_cli.data.store import Store
from sfd_cli.data.validation_split import validation_split
from sfd_cli.device import choose_device
from sfd_cli.errors import UserError
from sfd_cli.files import write_json
from sfd_cli.formats.model_folder import save_model
from sfd_cli.messages import say
from sfd_cli.networks.gaussian import kl_divergence
from sfd_cli.networks.semantic_pca import SemanticPCA
from sfd_cli.networks.semantic_vae import SemanticVAE, SemanticVAEConfig
from sfd_cli.processes import Processes
from sfd_cli.training.fit import LoopSettings, train
from sfd_cli.training.live_log import clear_log
from sfd_cli.weights.models import SemanticCompressor, open_semantic

STAGE = "train-semvae"
# The digest of imported weights is among the inputs; where they lie does not matter.
INERT = {"weights", "checkpoint_every", "log_every"}


class SemanticVAETask:
    """Reconstruct patch tokens: MSE + (1 - cosine) + `kl_weight` x KL (arXiv 2512.04926, Semantic VAE).

    Args:
        store: the feature store; its field `tokens` is (2, N, D) float16.
        channels: semantic channels C_s.
        kl_weight: weight of the KL, which is summed over the tokens and channels of an image.
    """

    def __init__(self, store: Store, channels: int, kl_weight: float) -> None:
        self.store = store
        self.channels = channels
        self.kl_weight = kl_weight

    def fetch(self, indices: np.ndarray, flips: np.ndarray) -> dict[str, Tensor]:
        """Patch tokens (B, N, D) float16."""
        return {"tokens": torch.from_numpy(self.store.read("tokens", indices, flips))}

    def draw(self, generator: torch.Generator, count: int) -> dict[str, Tensor]:
        """The posterior's noise (count, N, C_s)."""
        tokens = self.store.fields["tokens"].shape[1]
        shape = (count, tokens, self.channels)
        return {"noise": torch.randn(shape, generator=generator, device=generator.device)}

    def losses(self, model: nn.Module, batch: dict[str, Tensor], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """The objective and its terms, means over the batch."""
        tokens = batch["tokens"].float()
        reconstruction, mean, logvar = model(tokens, draws["noise"])
        mse, cosine = reconstruction_errors(reconstruction, tokens)
        kl = kl_divergence(mean, logvar).mean()
        return {"loss": mse + cosine + self.kl_weight * kl, "mse": mse, "cosine": cosine, "kl": kl}


def reconstruction_errors(reconstruction: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error and mean of 1 - cosine over the width, between two (B, N, D)."""
    cosine = F.cosine_similarity(reconstruction.float(), tokens, dim=-1)
    return F.mse_loss(reconstruction.float(), tokens), (1 - cosine).mean()


def run(settings: Settings) -> dict[str, Any]:
    """Make the semantic compressor in `models/semvae/` and its scores in `metrics/semvae.json`.

    A Semantic VAE is trained or imported, principal components are fitted; with `compressor: none` only the record
    that there is none is written.

    Returns:
        The scores on held-out images: MSE, cosine similarity and, of a VAE, KL in nats per image.

    Raises:
        UserError: there are no features, or the weights to import do not fit the settings.
    """
    paths, section = settings.paths, settings.semvae
    inputs = {}
    if section.compressor != "none":
        inputs["features"] = finished(paths.features, "sfd extract-features").fingerprint
    if section.weights is not None:
        inputs["weights"] = open_semantic(settings, section.weights).fingerprint
    inert = section.model_dump(include=INERT)
    output = StageOutput(paths.semvae, STAGE, section.model_dump(exclude=INERT), inputs, paths.metrics, inert)
    processes = Processes.join()
    if section.weights is not None and processes.is_main and not output.recorded():
        # Entering makes room by putting another model aside, so weights that do not fit are refused before.
        _imported(settings, Store(paths.features))
    with output if processes.is_main else nullcontext():
        if processes.broadcast(output.complete):
            if processes.is_main:
                say(f"{output.folder} is up to date")
        else:
            facts = _make(settings, output, processes)
            if processes.is_main:
                output.finish(**facts)
        if processes.is_main:
            (paths.metrics / "semvae").mkdir(parents=True, exist_ok=True)
            if not _is_trained(section):
                clear_log(paths.metrics / "semvae")
            shutil.rmtree(output.folder / CHECKPOINTS, ignore_errors=True)
            write_json(paths.metrics / "semvae.json", output.facts)
    if not processes.is_main:
        return {}
    return output.facts | {"folder": str(paths.semvae)}


def _is_trained(section: SemVAE) -> bool:
    """Rather than fitted, imported or left out."""
    return section.compressor == "vae" and section.weights is None


def _make(settings: Settings, output: StageOutput, processes: Processes) -> dict[str, Any]:
    """The facts to record, in the first process; the model folder has been written then."""
    section, device = settings.semvae, processes.device(choose_device(settings.runtime.device))
    if section.compressor == "none":
        return {"compressor": "none"}
    if _is_trained(section):
        model: SemanticCompressor = _train(settings, output, processes, device)
    elif not processes.is_main:
        return {}  # fitting and importing need no company
    else:
        if section.compressor == "pca":
            model = fit_components(settings)
        else:
            model = _imported(settings, Store(settings.paths.features))
    if not processes.is_main:
        return {}
    store = Store(settings.paths.features)
    _, held_out = validation_split(len(store), section.holdout)
    scores = evaluate(model.to(device), store, held_out, section.batch_size, device)
    save_model(output.folder, type(model).__name__, model.config, {"model": model.state_dict()}, {"held_out": scores})
    return scores


def _train(settings: Settings, output: StageOutput, processes: Processes, device: torch.device) -> SemanticVAE:
    section = settings.semvae
    store = Store(settings.paths.features)
    training, _ = validation_split(len(store), section.holdout)
    torch.manual_seed(section.seed)
    width = store.fields["tokens"].shape[-1]
    config = SemanticVAEConfig(
        width, section.channels, section.width, section.depth, section.heads, settings.encoder.tiles
    )
    result = train(
        SemanticVAETask(store, section.channels, section.kl_weight),
        SemanticVAE(config),
        EpochSampler(len(store), section.batch_size, section.seed, training),
        vae_loop(section),
        output.folder / CHECKPOINTS,
        settings.paths.metrics / "semvae",
        device,
        "Semantic VAE",
    )
    return result.model


def fit_components(settings: Settings) -> SemanticPCA:
    """Principal components of the training images' tokens, both flips.

    Raises:
        UserError: more components are asked for than the tokens are wide.
    """
    section, store = settings.semvae, Store(settings.paths.features)
    training, _ = validation_split(len(store), section.holdout)
    width = store.fields["tokens"].shape[-1]
    if section.channels > width:
        raise UserError(f"semvae.channels: {width} wide tokens have no {section.channels} principal components")
    gathered = Moments.none(width, scatter=True)
    starts = range(0, len(training), section.batch_size)
    for start in tqdm(starts, "principal components", unit="batch", disable=None):
        tokens = store.read("tokens", training[start : start + section.batch_size])
        gathered = gathered.merge(Moments.of(tokens, scatter=True))
    mean, covariance = torch.from_numpy(gathered.mean), torch.from_numpy(gathered.covariance())
    return SemanticPCA.of_tokens(mean, covariance, section.channels)


def _imported(settings: Settings, store: Store) -> SemanticCompressor:
    """The network at `semvae.weights`, which must be made for the stored tokens."""
    section = settings.semvae
    model = open_semantic(settings, section.weights).load()
    if not isinstance(model, SemanticVAE) or model.config.channels != section.channels:
        what = f"{type(model).__name__} of {model.config.channels} channels"
        raise UserError(f"semvae.weights: {section.weights} is a {what}, not a SemanticVAE of {section.channels}")
    if model.config.tiles != settings.encoder.tiles:
        weights = model.state_dict()
        model = SemanticVAE(replace(model.config, tiles=settings.encoder.tiles)).eval().requires_grad_(False)
        model.load_state_dict(weights)
    width, expected = store.fields["tokens"].shape[-1], model.config.feature_width
    if width != expected:
        raise UserError(
            f"semvae.weights: {section.weights} compresses tokens {expected} wide, but {store.folder} has {width}"
        )
    return model


def vae_loop(section: Any) -> LoopSettings:
    """Loop settings of a VAE trainer: cosine decay after a warmup, gradients clipped to norm 1."""
    return LoopSettings(
        steps=section.steps,
        batch_size=section.batch_size,
        learning_rate=section.learning_rate,
        warmup_steps=section.warmup_steps,
        decay="cosine",
        clip_norm=1.0,
        checkpoint_every=section.checkpoint_every,
        log_every=section.log_every,
        seed=section.seed,
    )


@torch.no_grad()
def evaluate(
    model: SemanticCompressor, store: Store, rows: np.ndarray, batch_size: int, device: torch.device
) -> dict[str, Any]:
    """Reconstruction of the posterior means and latent statistics of held-out images, unflipped.

    Returns:
        mse, cosine (similarity, 1 is perfect), of a VAE kl (nats per image), images, and per-channel latent mean and
        std.
    """
    model.eval()
    totals = dict.fromkeys(("mse", "cosine", *(("kl",) if isinstance(model, SemanticVAE) else ())), 0.0)
    latents = []
    for start in tqdm(range(0, len(rows), batch_size), "held-out features", unit="batch", disable=None):
        batch = rows[start : start + batch_size]
        tokens = torch.from_numpy(store.read("tokens", batch, np.zeros(len(batch), np.int64))).float().to(device)
        mean, logvar = model.encode(tokens)
        mse, distance = reconstruction_errors(model.decode(mean), tokens)
        totals["mse"] += mse.item() * len(batch)
        totals["cosine"] += (1 - distance.item()) * len(batch)
        if "kl" in totals:
            totals["kl"] += kl_divergence(mean, logvar).sum().item()
        latents.append(mean.flatten(0, 1).double().cpu())
    stacked = torch.cat(latents)
    return {
        "images": len(rows),
        **{name: total / len(rows) for name, total in totals.items()},
        "latent_mean": stacked.mean(0).tolist(),
        "latent_std": stacked.std(0).tolist(),
    }

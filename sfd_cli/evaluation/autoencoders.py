"""How much the two autoencoders of a system lose: a bound on its samples that no training of the transformer moves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sfd_cli.artifacts.fingerprints import finished
from sfd_cli.config import Settings
from sfd_cli.data.images import ImageManifest, ImageReader
from sfd_cli.data.store import Store
from sfd_cli.devices import choose_device
from sfd_cli.errors import UserError
from sfd_cli.evaluation.held_out import semantic_scores
from sfd_cli.evaluation.image_fidelity import psnr, ssim
from sfd_cli.evaluation.lpips import open_lpips
from sfd_cli.evaluation.reasons import NotComputable, Scores, unavailable
from sfd_cli.evaluation.reconstructions import TextureCodec
from sfd_cli.evaluation.unseen import unseen_rows
from sfd_cli.progress import progress
from sfd_cli.weights.models import open_semantic, open_texture_vae

TEXTURE_SCORES = ("psnr", "ssim", "lpips")
SEMANTIC_SCORES = ("mse", "cosine")

Similarity = Callable[[Tensor, Tensor], Tensor]
"""Two uint8 images (n, 3, H, W) each to a number for each pair, (n,)."""


def score_autoencoders(settings: Settings, most: int) -> dict[str, Scores]:
    """What texture codec and Semantic VAE lose, on images that they were not fitted to.

    Args:
        settings: the sections `fid`, `images`, `semvae`, `texture_vae`, `encoder`, `paths` and `runtime` are read.
        most: images at most, evenly spread.

    Returns:
        `texture`: PSNR in dB, SSIM and LPIPS, means over images of 8-bit originals and reconstructions of posterior
        means. `semantic`: mean squared error and cosine of patch tokens. Of each how many `images` and what they are,
        and the `model`. What cannot be computed is None with its reason.
    """
    found: dict[str, Scores] = {}
    for name, score, keys in (
        ("texture", _texture, TEXTURE_SCORES),
        ("semantic", _semantic, SEMANTIC_SCORES),
    ):
        try:
            found[name] = score(settings, most)
        except (UserError, NotComputable) as error:
            found[name] = unavailable(keys, str(error))
    return found


def _texture(settings: Settings, most: int) -> Scores:
    manifest = ImageManifest.load(settings.paths.images)
    model = open_texture_vae(settings)
    rows, what = unseen_rows(model, "images", manifest.fingerprint, len(manifest), most)
    codec = TextureCodec.open(settings, choose_device(settings.runtime.device))
    codec.require_side(settings.images.size)
    similarities: dict[str, Similarity] = {"psnr": psnr, "ssim": ssim}
    scores: Scores = {"model": _name(model.source, codec.fingerprint), "images": len(rows), "those": what}
    try:
        similarities["lpips"] = open_lpips(settings, codec.device)
    except (UserError, NotComputable) as error:
        scores |= unavailable(["lpips"], str(error))
    reader = ImageReader(manifest, settings.images.size, settings.runtime.threads)
    size = settings.fid.batch_size
    batches = [rows[start : start + size].tolist() for start in range(0, len(rows), size)]
    values: dict[str, list[Tensor]] = {name: [] for name in similarities}
    for pixels in progress(reader.iterate(batches), "reconstructions", len(batches), unit="batch"):
        returned = codec.reconstruct(pixels)
        for name, similarity in list(similarities.items()):
            try:
                values[name].append(similarity(returned, pixels).cpu())
            except NotComputable as error:
                scores |= unavailable([name], str(error))
                del similarities[name]
    return scores | {name: torch.cat(values[name]).mean().item() for name in similarities}


def _semantic(settings: Settings, most: int) -> Scores:
    if settings.semvae.compressor == "none":
        raise NotComputable("there are no semantics (semvae.compressor: none)")
    fingerprint = finished(settings.paths.features, "sfd extract-features").fingerprint
    store, model = Store(settings.paths.features), open_semantic(settings)
    rows, what = unseen_rows(model, "features", fingerprint, len(store), most)
    network = model.load()
    width, expected = store.fields["tokens"].shape[-1], network.config.feature_width
    if width != expected:
        problem = f"compresses tokens {expected} wide, and {store.folder} has {width}"
        raise UserError(model.source, problem, "extract features with the encoder that it was trained for")
    device = choose_device(settings.runtime.device)
    found = semantic_scores(network.to(device), store, rows, settings.fid.batch_size, device)
    scores: Scores = {"model": _name(model.source, model.fingerprint), "images": len(rows), "those": what}
    return scores | {name: found[name] for name in SEMANTIC_SCORES}


def _name(source: str, fingerprint: str) -> str:
    return f"{source} {fingerprint[:16]}"

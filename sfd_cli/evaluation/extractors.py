"""Extractors: networks whose features of images are compared."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfd_cli.config import Encoder, Settings, identity
from sfd_cli.errors import SfdError, UserError
from sfd_cli.evaluation.reasons import NotComputable
from sfd_cli.formats.torch_files import read_weights_file
from sfd_cli.processes import choose_device
from sfd_cli.weights.fetch import cache_folder, digest, fetch_weights
from sfd_cli.weights.registry import Https, find_weights
from sfd_cli.weights.visual_encoders import encoder_fingerprint, load_visual_encoder

INCEPTION_WEIGHTS = "inception_v3"
PATIENCE_SECONDS = 5.0


@dataclass(frozen=True)
class Extractor:
    """Images to features: `compute` maps uint8 (n, 3, H, W) on `device` to float (n, width).

    `identity` says in `fid.json` which weights were used.
    """

    name: str
    width: int
    device: torch.device
    compute: Callable[[Tensor], Tensor]
    identity: dict[str, Any] = field(default_factory=dict)

    def __call__(self, images: Tensor) -> Tensor:
        """Features (n, width), float32 on the CPU, of uint8 images (n, 3, H, W)."""
        with torch.inference_mode():
            return self.compute(images.to(self.device)).float().cpu()


def class_token_extractor(config: Encoder, device: torch.device) -> Extractor:
    """The visual encoder's class token after the final norm."""
    encoder = load_visual_encoder(config).to(device)
    return Extractor("dinov2", encoder.feature_width, device, lambda images: encoder(images.float() / 255)[1])


def inception_extractor(weights: Path, device: torch.device) -> Extractor:
    """torch-fidelity's Inception-v3, 2048 pooled features, TensorFlow-compatible resizing.

    Raises:
        UserError: `weights` is not a plain state dict.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # torch-fidelity unpickles the file, so refuse one that could execute code.
    read_weights_file(weights)
    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights))
    network.to(device)
    return Extractor("inception", 2048, device, lambda images: network(images)[0])


def inception_weights() -> Path:
    """Inception's weights file, fetched if it is not here yet.

    `fetch_weights` retries for minutes, but these weights are optional: a server that does not answer within seconds
    is not tried again.

    Raises:
        UserError: there is no file and no download.
    """
    from torch.hub import get_dir

    weights = find_weights(INCEPTION_WEIGHTS)
    places = (cache_folder() / weights.file, Path(get_dir()) / "checkpoints" / weights.file)
    if not any(place.exists() for place in places):
        assert isinstance(weights.source, Https)
        remedy = f"`sfd weights fetch {INCEPTION_WEIGHTS}` says which file to put where"
        try:
            urllib.request.urlopen(weights.source.url, timeout=PATIENCE_SECONDS).close()
        except urllib.error.HTTPError as error:
            raise UserError(weights.source, f"answered HTTP {error.code} {error.reason}", remedy) from None
        except OSError as error:
            problem = f"cannot be reached ({getattr(error, 'reason', error)})"
            raise UserError(weights.source, problem, remedy) from None
    return fetch_weights(weights)


def _open_dinov2(settings: Settings, device: torch.device) -> Extractor:
    encoder = settings.fid.encoder
    seen = identity(encoder) | {"token": "class", "fingerprint": encoder_fingerprint(encoder)}
    return replace(class_token_extractor(encoder, device), identity={"encoder": seen})


def _open_inception(settings: Settings, device: torch.device) -> Extractor:
    if settings.fid.inception == "none":
        raise NotComputable("switched off (fid.inception: none)")
    weights = inception_weights()
    seen = {"file": weights.name, "sha256": digest(weights)}
    return replace(inception_extractor(weights, device), identity={"inception": seen})


EXTRACTORS: dict[str, Callable[[Settings, torch.device], Extractor]] = {
    "dinov2": _open_dinov2,
    "inception": _open_inception,
}
LABELS = {"dinov2": "DINOv2", "inception": "Inception"}


def open_extractors(settings: Settings) -> tuple[list[Extractor], dict[str, str]]:
    """The extractors whose weights can be had, at least one, and why others cannot, by name.

    Raises:
        UserError: none can.
    """
    device = choose_device(settings.runtime.device)
    found: list[Extractor] = []
    missing: dict[str, str] = {}
    for name, open_one in EXTRACTORS.items():
        try:
            found.append(open_one(settings, device))
        except (NotComputable, SfdError) as error:
            missing[name] = str(error)
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in missing.items())
        raise UserError("fid.encoder", f"no features can be computed ({reasons})", "see `sfd weights list`")
    return found, missing

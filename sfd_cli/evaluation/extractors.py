"""Extractors: networks whose features of images are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfd_cli.config import Encoder, Settings
from sfd_cli.device import choose_device
from sfd_cli.errors import StageFailure, UserError
from sfd_cli.evaluation.inception import inception_weights
from sfd_cli.evaluation.reasons import NotComputable
from sfd_cli.formats.torch_files import read_weights_file
from sfd_cli.weights.fetch import digest
from sfd_cli.weights.visual_encoders import encoder_fingerprint, load_visual_encoder


@dataclass(frozen=True)
class Extractor:
    """Images to features: `compute` maps uint8 (n, 3, H, W) on `device` to float (n, width)."""

    name: str
    width: int
    device: torch.device
    compute: Callable[[Tensor], Tensor]

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

    # torch-fidelity unpickles what it is given; only a file that loads without executing anything gets there.
    read_weights_file(weights)
    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights))
    network.to(device)
    return Extractor("inception", 2048, device, lambda images: network(images)[0])


def _open_dinov2(settings: Settings, device: torch.device) -> tuple[Extractor, dict[str, Any]]:
    encoder = settings.fid.encoder
    extractor = class_token_extractor(encoder, device)
    identity = encoder.model_dump() | {"token": "class", "fingerprint": encoder_fingerprint(encoder)}
    return extractor, {"encoder": identity}


def _open_inception(settings: Settings, device: torch.device) -> tuple[Extractor, dict[str, Any]]:
    if settings.fid.inception == "none":
        raise NotComputable("switched off (fid.inception: none)")
    weights = inception_weights()
    return inception_extractor(weights, device), {"inception": {"file": weights.name, "sha256": digest(weights)}}


# By name: opens an extractor, and says what identifies it. The first is the one that works everywhere.
EXTRACTORS: dict[str, Callable[[Settings, torch.device], tuple[Extractor, dict[str, Any]]]] = {
    "dinov2": _open_dinov2,
    "inception": _open_inception,
}
LABELS = {"dinov2": "DINOv2", "inception": "Inception"}


@dataclass(frozen=True)
class Extractors:
    """The extractors there are.

    Attributes:
        found: ready for use, one at least.
        missing: why others are not there, by name.
        identities: what identifies those that are there.
    """

    found: list[Extractor]
    missing: dict[str, str]
    identities: dict[str, Any]


def open_extractors(settings: Settings) -> Extractors:
    """All extractors whose weights can be had.

    Raises:
        UserError: none can.
    """
    device = choose_device(settings.runtime.device)
    opened = Extractors([], {}, {})
    for name, open_one in EXTRACTORS.items():
        try:
            extractor, identity = open_one(settings, device)
        except (NotComputable, UserError, StageFailure) as error:
            opened.missing[name] = str(error)
        else:
            opened.found.append(extractor)
            opened.identities.update(identity)
    if not opened.found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in opened.missing.items())
        raise UserError("fid.encoder", f"no features can be computed ({reasons})", "see `sfd weights list`")
    return opened

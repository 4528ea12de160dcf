"""Extractors: networks whose features of images are compared; some give features of more than one kind at once."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

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

POOLED, SPATIAL, LOGITS = "pooled", "spatial", "logits"
"""Kinds of features."""
SPATIAL_CHANNELS = 7
INCEPTION_WIDTHS = {POOLED: 2048, SPATIAL: SPATIAL_CHANNELS * 17 * 17, LOGITS: 1008}
KINDS: dict[str, tuple[str, ...]] = {"dinov2": (POOLED,), "inception": tuple(INCEPTION_WIDTHS)}
"""What each extractor gives, before it is opened."""
INCEPTION_WEIGHTS = "inception_v3"
PATIENCE_SECONDS = 5.0


@dataclass(frozen=True)
class Extractor:
    """Images to features of one or more kinds, in one pass of one network.

    Attributes:
        name: of the network; it is in the names of scores.
        widths: kind of features -> numbers per image, D.
        device: where it computes.
        compute: uint8 images (n, 3, H, W) on `device` to float features (n, D) of at least these kinds.
        identity: says in `fid.json` which weights were used.
    """

    name: str
    widths: dict[str, int]
    device: torch.device
    compute: Callable[[Tensor], dict[str, Tensor]]
    identity: dict[str, Any] = field(default_factory=dict)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Features (n, D) of each kind, float32 on the CPU, of uint8 images (n, 3, H, W)."""
        with torch.inference_mode():
            found = self.compute(images.to(self.device))
        return {kind: found[kind].float().cpu() for kind in self.widths}

    @classmethod
    def of(cls, name: str, width: int, device: torch.device, compute: Callable[[Tensor], Tensor]) -> Self:
        """An extractor of one kind of features, `pooled`: `compute` maps images to (n, width)."""
        return cls(name, {POOLED: width}, device, lambda images: {POOLED: compute(images)})

    def only(self, kinds: Collection[str]) -> Self:
        """The same network for some of its kinds of features."""
        return replace(self, widths={kind: width for kind, width in self.widths.items() if kind in kinds})


def class_token_extractor(config: Encoder, device: torch.device) -> Extractor:
    """The visual encoder's class token after the final norm."""
    encoder = load_visual_encoder(config).to(device)
    return Extractor.of("dinov2", encoder.feature_width, device, lambda images: encoder(images.float() / 255)[1])


def inception_extractor(weights: Path, device: torch.device) -> Extractor:
    """torch-fidelity's Inception-v3 with the outputs that ADM's evaluator takes, TensorFlow-compatible resizing.

    These are `pooled` (2048); `spatial` (2023), which is the first 7 channels of what ADM calls `mixed_6/conv`, the 1x1
    branch of the third 17x17 block after its ReLU, in ADM's order (row, column, channel); and `logits` (1008) without
    their bias.

    Raises:
        UserError: `weights` is not a plain state dict.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # torch-fidelity unpickles the file, so refuse one that could execute code.
    read_weights_file(weights)
    outputs = ["2048", "logits_unbiased"]
    network = FeatureExtractorInceptionV3("inception-v3-compat", outputs, feature_extractor_weights_path=str(weights))
    network.to(device)
    seen: list[Tensor] = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: seen.append(output))

    def compute(images: Tensor) -> dict[str, Tensor]:
        pooled, logits = network(images)
        spatial = seen.pop()[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        return {POOLED: pooled, SPATIAL: spatial, LOGITS: logits}

    return Extractor("inception", INCEPTION_WIDTHS, device, compute)


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

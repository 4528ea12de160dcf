"""The extractors that scores are computed with, by name, and which of them can be had."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sfd_cli.config import Encoder, Fid, Settings, identity
from sfd_cli.errors import SfdError, UserError
from sfd_cli.evaluation.extractor import EMBEDDING, POOLED, Extractor
from sfd_cli.evaluation.inception import INCEPTION_WIDTHS, inception_extractor
from sfd_cli.evaluation.reasons import NotComputable
from sfd_cli.evaluation.vision_transformers import (
    EDM2_ENCODER,
    class_token_extractor,
    clip_extractor,
    edm2_extractor,
)
from sfd_cli.weights.fetch import digest, fetch_weights, find_local
from sfd_cli.weights.registry import Https, Hub, find_weights
from sfd_cli.weights.visual_encoders import encoder_fingerprint, load_visual_encoder

PATIENCE_SECONDS = 5.0


@dataclass(frozen=True)
class Features:
    """An entry of `EXTRACTORS`.

    Attributes:
        name: the extractor's, in names of scores.
        label: its features' on the page.
        kinds: of features that it gives.
        open: the extractor. Raises NotComputable where it is switched off, SfdError where it cannot be had.
    """

    name: Callable[[Fid], str]
    label: Callable[[Fid], str]
    kinds: tuple[str, ...]
    open: Callable[[Settings, torch.device], Extractor]


def optional_weights(name: str) -> Path:
    """The registered weights `name`, fetched if they are not here yet.

    `fetch_weights` retries for minutes, but a score can do without its weights: a server that does not answer within
    seconds is not tried again.

    Raises:
        UserError: they are not here, and there is no download.
    """
    weights = find_weights(name)
    if find_local(weights) is None:
        source = weights.source
        assert isinstance(source, Https | Hub)
        url = source.url if isinstance(source, Https) else source.url(source.path)
        remedy = f"`sfd weights fetch {name}` says which file to put where"
        try:
            urllib.request.urlopen(url, timeout=PATIENCE_SECONDS).close()
        except urllib.error.HTTPError as error:
            raise UserError(source, f"answered HTTP {error.code} {error.reason}", remedy) from None
        except OSError as error:
            problem = f"cannot be reached ({getattr(error, 'reason', error)})"
            raise UserError(source, problem, remedy) from None
    return fetch_weights(weights)


def _open_encoder(settings: Settings, device: torch.device) -> Extractor:
    encoder = settings.fid.encoder
    return replace(class_token_extractor(encoder, device), identity={"encoder": _described(encoder)})


def _open_dinov2(settings: Settings, device: torch.device) -> Extractor:
    if settings.fid.dinov2 == "none":
        raise NotComputable("switched off (fid.dinov2: none)")
    optional_weights(EDM2_ENCODER.name)
    extractor = edm2_extractor(load_visual_encoder(EDM2_ENCODER), device)
    return replace(extractor, identity={"dinov2": _described(EDM2_ENCODER)})


def _open_inception(settings: Settings, device: torch.device) -> Extractor:
    if settings.fid.inception == "none":
        raise NotComputable("switched off (fid.inception: none)")
    weights = optional_weights("inception_v3")
    return replace(inception_extractor(weights, device), identity={"inception": _of_file(weights)})


def _open_clip(settings: Settings, device: torch.device) -> Extractor:
    if settings.fid.clip == "none":
        raise NotComputable("switched off (fid.clip: none)")
    weights = optional_weights("clip_vitl14_336")
    return replace(clip_extractor(weights, device), identity={"clip": _of_file(weights)})


def _described(encoder: Encoder) -> dict[str, object]:
    return identity(encoder) | {"token": "class", "fingerprint": encoder_fingerprint(encoder)}


def _of_file(weights: Path) -> dict[str, str]:
    return {"file": weights.name, "sha256": digest(weights)}


def _encoder_label(options: Fid) -> str:
    return f"{options.encoder.name} at {options.encoder.image_size} px"


EXTRACTORS: dict[str, Features] = {
    "encoder": Features(lambda options: options.encoder.short_name, _encoder_label, (POOLED,), _open_encoder),
    "dinov2": Features(lambda _: "dinov2", lambda _: "DINOv2", (POOLED,), _open_dinov2),
    "inception": Features(lambda _: "inception", lambda _: "Inception", tuple(INCEPTION_WIDTHS), _open_inception),
    "clip": Features(lambda _: "clip", lambda _: "CLIP", (EMBEDDING,), _open_clip),
}


def open_extractors(settings: Settings, device: torch.device) -> tuple[list[Extractor], dict[str, str]]:
    """The extractors whose weights can be had, at least one, on a device, and why others cannot.

    These are by their keys in `EXTRACTORS`.

    Raises:
        UserError: none can.
    """
    found: list[Extractor] = []
    missing: dict[str, str] = {}
    for key, entry in EXTRACTORS.items():
        try:
            found.append(entry.open(settings, device))
        except (NotComputable, SfdError) as error:
            missing[key] = str(error)
    if not found:
        reasons = "; ".join(f"{key}: {reason}" for key, reason in missing.items())
        raise UserError("fid.encoder", f"no features can be computed ({reasons})", "see `sfd weights list`")
    return found, missing

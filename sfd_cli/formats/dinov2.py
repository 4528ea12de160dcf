"""DINOv2's published backbones: the release's bare state dict, whose names are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfd_cli.formats.format import Content, Format, FormatError, Hints, ModelParts
from sfd_cli.formats.state_dicts import count_numbers, shape_of
from sfd_cli.networks.visual_encoder import VisualEncoder

KIND = "a DINOv2 backbone"
# Width and number of blocks of the published sizes.
SIZES = {(384, 12): "s", (768, 12): "b", (1024, 24): "l", (1536, 40): "g"}
# All were published at 518 px, that is 37 x 37 patches.
NATIVE_SIZE, NATIVE_GRID = 518, 37


@dataclass(frozen=True)
class VisualEncoderConfig:
    """Which encoder it is, by the name that `VisualEncoder` takes."""

    name: str


def visual_encoder_from_release(weights: Mapping[str, Tensor]) -> tuple[VisualEncoderConfig, dict[str, Tensor]]:
    """A backbone of the DINOv2 release: its name, and its tensors under the release's own names.

    Raises:
        FormatError: it is of no published size, or something is missing, unknown or of another shape.
    """
    width = shape_of(weights, "cls_token", 3, KIND)[2]
    depth = count_numbers(weights, r"blocks\.(\d+)\.")
    if (width, depth) not in SIZES:
        known = ", ".join(f"{width} wide with {depth} blocks" for width, depth in SIZES)
        raise FormatError(f"is {width} wide and has {depth} blocks", f"DINOv2 was published {known}")
    positions = shape_of(weights, "pos_embed", 3, KIND)
    expected = (1, 1 + NATIVE_GRID**2, width)
    if positions != expected:
        raise FormatError(f"is not {KIND}: pos_embed is {positions} instead of {expected}")
    name = f"dinov2_vit{SIZES[width, depth]}14{'_reg' if 'register_tokens' in weights else ''}"
    with torch.device("meta"):
        encoder = VisualEncoder(name, NATIVE_SIZE)
        try:
            encoder.load({key: tensor.to("meta") for key, tensor in weights.items()})
        except ValueError as error:
            raise FormatError(f"is not {KIND}: {error}") from None
    return VisualEncoderConfig(name), dict(weights)


def _read(content: Content, _: Hints) -> ModelParts:
    config, weights = visual_encoder_from_release(content.tensors)
    return ModelParts("VisualEncoder", config, {"model": weights})


def _write(model: ModelParts) -> dict[str, dict[str, Any]]:
    found, weights = visual_encoder_from_release(model.tensors)
    if found != model.config:
        raise FormatError(f"describes a {model.config.name}, but its weights are a {found.name}", "import them again")
    return {"": dict(weights)}


FORMAT = Format(
    "VisualEncoder",
    VisualEncoderConfig,
    matches=lambda content: content.has("blocks.0.ls1."),
    read=_read,
    write=_write,
)

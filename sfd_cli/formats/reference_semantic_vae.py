"""Semantic VAE checkpoints of the public reference code: `{"model_state_dict", "input_dim", "bottleneck_dim"}`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sfd_cli.formats.format import Content, Format, FormatError, Hints, ModelParts
from sfd_cli.formats.state_dicts import count_numbers, renamed, require_fit, shape_of
from sfd_cli.networks.semantic_vae import SemanticVAE, SemanticVAEConfig

BLOCK_NAMES = {
    "attn.in_proj_weight": "qkv.weight",
    "attn.in_proj_bias": "qkv.bias",
    "attn.out_proj": "out",
    "norm1": "attention_norm",
    "norm2": "mlp_norm",
    "mlp.0": "up",
    "mlp.2": "down",
}
KIND = "a Semantic VAE"


def semantic_vae_from_reference(
    weights: Mapping[str, Tensor], heads: int
) -> tuple[SemanticVAEConfig, dict[str, Tensor]]:
    """A reference Semantic VAE's state dict as our configuration and state dict.

    Raises:
        FormatError: something is missing, unknown or of another shape, by the reference's names.
    """
    width, feature_width = shape_of(weights, "encoder.0.weight", 2, KIND)
    channels = shape_of(weights, "decoder.0.weight", 2, KIND)[1]
    depth = count_numbers(weights, r"encoder\.(\d+)\.attn\.in_proj_weight$")
    if heads < 1 or width % heads:
        raise FormatError(f"has width {width}, which {heads} heads do not divide", "give the number it has")
    config = SemanticVAEConfig(feature_width, channels, width, depth, heads)
    converted, name_of = renamed(weights, lambda key: _our_name(key, depth), lambda key: _reference_name(key, depth))
    with torch.device("meta"):
        require_fit(SemanticVAE(config), converted, name_of)
    return config, converted


def semantic_vae_to_reference(config: SemanticVAEConfig, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our Semantic VAE's state dict under the reference's names."""
    return {_reference_name(key, config.depth): tensor for key, tensor in state_dict.items()}


def _our_name(key: str, depth: int) -> str:
    """`encoder.2.norm1.bias` -> `encoder.blocks.1.attention_norm.bias`; an unknown name comes back as it is."""
    match = re.fullmatch(r"(encoder|decoder)\.(\d+)\.(.+)", key)
    if not match:
        return key
    half, position, rest = match[1], int(match[2]), match[3]
    fixed = {0: "linear_in", depth + 1: "norm", depth + 2: "linear_out"}
    if position in fixed:
        return f"{half}.{fixed[position]}.{rest}"
    for theirs, ours in BLOCK_NAMES.items():
        if rest == theirs or rest.startswith(f"{theirs}."):
            return f"{half}.blocks.{position - 1}.{ours}{rest.removeprefix(theirs)}"
    return key


def _reference_name(key: str, depth: int) -> str:
    """The inverse of `_our_name` for the names of our module."""
    half, part, rest = key.split(".", 2)
    fixed = {"linear_in": 0, "norm": depth + 1, "linear_out": depth + 2}
    if part in fixed:
        return f"{half}.{fixed[part]}.{rest}"
    number, _, rest = rest.partition(".")
    for theirs, ours in BLOCK_NAMES.items():
        if rest == ours or rest.startswith(f"{ours}."):
            return f"{half}.{int(number) + 1}.{theirs}{rest.removeprefix(ours)}"
    raise ValueError(f"{key} is no weight of a SemanticVAE")


def _read(content: Content, hints: Hints) -> ModelParts:
    if hints.heads is None:
        remedy = "give semvae.heads, or `sfd weights import --heads`"
        raise FormatError("does not tell the number of its attention heads", remedy)
    config, converted = semantic_vae_from_reference(content.tensors, hints.heads)
    for key, size in _sizes_beside(config).items():
        if content.checkpoint.get(key, size) != size:
            raise FormatError(f"{key} is {content.checkpoint[key]}, but the tensors of the Semantic VAE say {size}")
    expected_sizes = hints.sizes or {}
    if any(getattr(config, key) != value for key, value in expected_sizes.items()):
        found = " and ".join(f"semvae.{key} {getattr(config, key)}" for key in expected_sizes)
        expected = " and ".join(f"{key} {value}" for key, value in expected_sizes.items())
        raise FormatError(
            f"is a Semantic VAE of another size than the section semvae, which says {expected}",
            f"set {found}, and semvae.heads to its attention heads, which no tensor tells",
        )
    return ModelParts("SemanticVAE", replace(config, tiles=hints.tiles or 1), {"model": converted})


def _write(model: ModelParts) -> dict[str, dict[str, Any]]:
    weights = semantic_vae_to_reference(model.config, model.tensors)
    return {"": {"model_state_dict": weights, **_sizes_beside(model.config)}}


def _sizes_beside(config: SemanticVAEConfig) -> dict[str, int]:
    """The sizes that the reference writes beside the weights."""
    return {"input_dim": config.feature_width, "bottleneck_dim": config.channels}


FORMAT = Format(
    "SemanticVAE",
    SemanticVAEConfig,
    matches=lambda content: content.has("encoder.0.", "encoder.1.", "decoder.0.", "decoder.1."),
    read=_read,
    write=_write,
    hints=("heads", "tiles", "sizes"),
)

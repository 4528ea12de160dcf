"""Semantic VAE checkpoints of the public reference code, to our names and back."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from sfd_cli.errors import UserError
from sfd_cli.formats.model_folder import require_fit
from sfd_cli.formats.state_dicts import count_numbers, renamed, shape_of
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
        UserError: something is missing, unknown or of another shape, by the reference's names.
    """
    width, feature_width = shape_of(weights, "encoder.0.weight", 2, KIND)
    channels = shape_of(weights, "decoder.0.weight", 2, KIND)[1]
    depth = count_numbers(weights, r"encoder\.(\d+)\.attn\.in_proj_weight$")
    if heads < 1 or width % heads:
        raise UserError(f"{heads} heads do not divide the Semantic VAE's width {width}; give the number it has")
    config = SemanticVAEConfig(feature_width, channels, width, depth, heads)
    converted, name_of = renamed(weights, lambda key: _our_name(key, depth), lambda key: _reference_name(key, depth))
    with torch.device("meta"):
        require_fit(SemanticVAE(config), converted, "the reference checkpoint", name_of)
    return config, converted


def semantic_vae_to_reference(config: SemanticVAEConfig, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our Semantic VAE's state dict under the reference's names."""
    return {_reference_name(key, config.depth): tensor for key, tensor in state_dict.items()}


def _our_name(key: str, depth: int) -> str:
    """`encoder.2.norm1.bias` -> `encoder.blocks.1.attention_norm.bias`; a stranger's name comes back as it is."""
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

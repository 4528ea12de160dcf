"""LDM autoencoders (SD-VAE, VA-VAE) as our texture VAE, and back: `{"state_dict"}`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from sfd_cli.formats.diffusers import autoencoder_config, fitted_weights, fold, inverse, rename_attention
from sfd_cli.formats.format import Content, Format, FormatError, Hints, ModelParts
from sfd_cli.formats.state_dicts import count_numbers, shape_of
from sfd_cli.networks.texture_vae import TextureVAEConfig

KIND = "an LDM-style autoencoder"

# Parts of published checkpoints that only training needed.
TRAINING_ONLY = ("loss.", "foundation_model.", "linear_proj.", "model_ema.")

# LDM's module paths and those of diffusers; # stands for a number.
LDM_MODULES = (
    ("down.#.block.#", "down_blocks.#.resnets.#"),
    ("down.#.attn.#", "down_blocks.#.attentions.#"),
    ("down.#.downsample", "down_blocks.#.downsamplers.0"),
    ("up.#.block.#", "up_blocks.#.resnets.#"),
    ("up.#.attn.#", "up_blocks.#.attentions.#"),
    ("up.#.upsample", "up_blocks.#.upsamplers.0"),
    ("mid.block_1", "mid_block.resnets.0"),
    ("mid.block_2", "mid_block.resnets.1"),
    ("mid.attn_1", "mid_block.attentions.0"),
    ("nin_shortcut", "conv_shortcut"),
    ("norm_out", "conv_norm_out"),
)
LDM_NORM_GROUPS = 32
# Attention modules in LDM's words and in those of diffusers.
LDM_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def texture_vae_from_ldm(state_dict: Mapping[str, Tensor]) -> tuple[TextureVAEConfig, dict[str, Tensor]]:
    """An LDM-style KL autoencoder's state dict as our configuration and state dict.

    Training-only parts (discriminator, aligned foundation model) are ignored. Group norms have 32 groups, as
    everywhere in LDM.

    Raises:
        FormatError: something is missing, unknown or of another shape, by LDM's names.
    """
    weights = {key: tensor for key, tensor in state_dict.items() if not key.startswith(TRAINING_ONLY)}
    levels = count_numbers(weights, r"encoder\.down\.(\d+)\.block\.0\.conv1\.weight$")
    if not levels:
        raise FormatError(f"is not {KIND}: encoder.down.0.block.0.conv1.weight is missing")
    widths = [shape_of(weights, f"encoder.down.{level}.block.0.conv1.weight", 4, KIND)[0] for level in range(levels)]
    config = autoencoder_config(
        channels=shape_of(weights, "decoder.conv_in.weight", 4, KIND)[1],
        block_channels=tuple(widths),
        layers_per_block=count_numbers(weights, r"encoder\.down\.0\.block\.(\d+)\.conv1\.weight$"),
        attention_levels=tuple(level for level in range(levels) if f"encoder.down.{level}.attn.0.q.weight" in weights),
        mid_attention="encoder.mid.attn_1.q.weight" in weights,
        norm_groups=LDM_NORM_GROUPS,
    )
    return config, fitted_weights(
        config, weights, lambda key: _from_ldm_name(key, levels), lambda key: _ldm_name(key, levels)
    )


def texture_vae_to_ldm(config: TextureVAEConfig, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our texture VAE's state dict under LDM's names, the linear layers of attention as 1x1 convolutions.

    LDM's code gives the latent unfolded, whatever `space_to_depth` says.

    Raises:
        FormatError: LDM's code would compute something else with these weights.
    """
    if config.norm_groups != LDM_NORM_GROUPS:
        problem = f"has norm_groups {config.norm_groups}, but LDM's autoencoders have {LDM_NORM_GROUPS}"
        raise FormatError(problem, "it cannot be written in their layout")
    exported: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        convolution = ".attentions." in key and tensor.ndim == 2
        exported[_ldm_name(key, len(config.block_channels))] = tensor[:, :, None, None] if convolution else tensor
    return exported


def _from_ldm_name(key: str, levels: int) -> str:
    """LDM's name -> ours; an unknown one comes back behind our prefix."""
    for theirs, ours in LDM_MODULES:
        key = _renamed(key, theirs, ours)
    return f"autoencoder.{rename_attention(_turned(key, 'up_blocks', levels), LDM_ATTENTION)}"


def _ldm_name(key: str, levels: int) -> str:
    """Our name -> LDM's."""
    key = rename_attention(key.removeprefix("autoencoder."), inverse(LDM_ATTENTION))
    for theirs, ours in LDM_MODULES:
        key = _renamed(key, ours, theirs)
    return _turned(key, "up", levels)


def _renamed(key: str, old: str, new: str) -> str:
    """`key` with the module path `old` replaced by `new`, the numbers kept."""
    found = re.search(rf"\.{re.escape(old)}\.".replace(r"\#", r"(\d+)"), key)
    if not found:
        return key
    path = new.replace("#", "{}").format(*found.groups())
    return f"{key[: found.start()]}.{path}.{key[found.end() :]}"


def _turned(key: str, module: str, levels: int) -> str:
    """LDM counts decoder levels from the finest, diffusers in the order they run."""
    return re.sub(rf"\.{module}\.(\d+)\.", lambda match: f".{module}.{levels - 1 - int(match[1])}.", key)


def _read(content: Content, hints: Hints) -> ModelParts:
    config, weights = texture_vae_from_ldm(content.tensors)
    return ModelParts("TextureVAE", replace(config, space_to_depth=fold(config, hints)), {"model": weights})


FORMAT = Format(
    "TextureVAE",
    TextureVAEConfig,
    matches=lambda content: content.has(
        "encoder.down.", "encoder.mid.", "decoder.up.", "decoder.mid.", "quant_conv.", "post_quant_conv."
    ),
    read=_read,
    write=lambda model: {"": {"state_dict": texture_vae_to_ldm(model.config, model.tensors)}},
    hints=("space_to_depth", "texture_channels"),
)

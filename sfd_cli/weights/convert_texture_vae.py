"""KL autoencoders from elsewhere as our texture VAE: LDM checkpoints (SD-VAE, VA-VAE) and diffusers folders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sfd_cli.errors import UserError
from sfd_cli.networks.texture_vae import TextureVAE, TextureVAEConfig
from sfd_cli.weights.model_files import require_fit, unwrap_checkpoint

# Parts of published checkpoints that only training needed.
TRAINING_ONLY = ("loss.", "foundation_model.", "linear_proj.", "model_ema.")

LDM_PATTERNS = (
    (r"\.down\.(\d+)\.block\.(\d+)\.", r".down_blocks.\1.resnets.\2."),
    (r"\.down\.(\d+)\.attn\.(\d+)\.", r".down_blocks.\1.attentions.\2."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.up\.(\d+)\.block\.(\d+)\.", r".up_blocks.\1.resnets.\2."),
    (r"\.up\.(\d+)\.attn\.(\d+)\.", r".up_blocks.\1.attentions.\2."),
    (r"\.up\.(\d+)\.upsample\.", r".up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
)
# Attention modules in LDM's words, in those of diffusers before 0.14, and today's.
ATTENTION_NAMES = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}


def texture_vae_from_ldm(checkpoint: Mapping[str, Any]) -> tuple[TextureVAEConfig, dict[str, Tensor]]:
    """An LDM-style KL autoencoder, or the file's dict around it, as our configuration and state dict.

    Training-only parts (discriminator, aligned foundation model) are ignored. Group norms have 32 groups, as
    everywhere in LDM.

    Raises:
        UserError: something is missing, unknown or of another shape; names the keys.
    """
    weights = _without_training_parts(unwrap_checkpoint(checkpoint, ("state_dict",)))
    levels = _count(weights, r"encoder\.down\.(\d+)\.block\.0\.conv1\.weight")
    if not levels or "decoder.conv_in.weight" not in weights:
        raise UserError(
            "the checkpoint is not an LDM-style autoencoder: encoder.down.* or decoder.conv_in.weight is missing"
        )
    config = _config(
        channels=weights["decoder.conv_in.weight"].shape[1],
        block_channels=tuple(_level_width(weights, level) for level in range(levels)),
        layers_per_block=_count(weights, r"encoder\.down\.0\.block\.(\d+)\.conv1\.weight"),
        attention_levels=tuple(level for level in range(levels) if f"encoder.down.{level}.attn.0.q.weight" in weights),
        mid_attention="encoder.mid.attn_1.q.weight" in weights,
    )
    return config, _fitted(config, {_diffusers_name(key, levels): tensor for key, tensor in weights.items()})


def texture_vae_from_diffusers(
    description: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> tuple[TextureVAEConfig, dict[str, Tensor]]:
    """A diffusers `AutoencoderKL`, its `config.json` and weights, as our configuration and state dict.

    Its scaling factor is left out: latents are normalised by their own statistics here.

    Raises:
        UserError: it is another kind of autoencoder, or keys do not fit.
    """
    if description.get("_class_name") != "AutoencoderKL":
        raise UserError(f"only diffusers' AutoencoderKL can be imported, not {description.get('_class_name')}")
    try:
        kinds = description["down_block_types"]
        config = _config(
            channels=description["latent_channels"],
            block_channels=tuple(description["block_out_channels"]),
            layers_per_block=description.get("layers_per_block", 1),
            attention_levels=tuple(level for level, kind in enumerate(kinds) if kind.startswith("Attn")),
            mid_attention=description.get("mid_block_add_attention", True),
            norm_groups=description.get("norm_num_groups", 32),
        )
    except KeyError as error:
        raise UserError(f"config.json of the diffusers autoencoder has no {error}; copy the folder again") from None
    return config, _fitted(config, dict(weights))


def _config(**values: Any) -> TextureVAEConfig:
    try:
        return TextureVAEConfig(**values)
    except ValueError as error:
        raise UserError(f"the checkpoint is not an autoencoder that can be built here: {error}") from None


def _without_training_parts(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in weights.items() if not key.startswith(TRAINING_ONLY)}


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    """How many indices, from 0, keys of this pattern have."""
    return len({match[1] for key in weights if (match := re.fullmatch(pattern, key))})


def _level_width(weights: Mapping[str, Tensor], level: int) -> int:
    key = f"encoder.down.{level}.block.0.conv1.weight"
    if key not in weights:
        raise UserError(f"the checkpoint is not an LDM-style autoencoder: {key} is missing")
    return weights[key].shape[0]


def _diffusers_name(key: str, levels: int) -> str:
    for pattern, replacement in LDM_PATTERNS:
        key = re.sub(pattern, replacement, key)
    # LDM counts decoder levels from the finest, diffusers in the order they run.
    return re.sub(r"\.up_blocks\.(\d+)\.", lambda match: f".up_blocks.{levels - 1 - int(match[1])}.", key)


def _fitted(config: TextureVAEConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under today's attention names, whose 1x1 convolutions are linear layers, checked."""
    fitted: dict[str, Tensor] = {}
    for key, tensor in weights.items():
        match = re.fullmatch(r"(.+\.attentions\.\d+\.)(\w+)\.(weight|bias)", key)
        if match and match[2] in ATTENTION_NAMES:
            key = f"{match[1]}{ATTENTION_NAMES[match[2]]}.{match[3]}"
        if ".attentions." in key and tensor.ndim == 4:
            tensor = tensor.flatten(1)
        fitted[f"autoencoder.{key}"] = tensor
    with torch.device("meta"):
        require_fit(TextureVAE(config), fitted, "the checkpoint")
    return fitted

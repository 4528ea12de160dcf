"""KL autoencoders from elsewhere as our texture VAE, and back: LDM checkpoints (SD-VAE, VA-VAE), diffusers folders."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sfd_cli.errors import UserError
from sfd_cli.formats.model_folder import require_fit
from sfd_cli.formats.state_dicts import count_numbers, renamed, shape_of
from sfd_cli.networks.texture_vae import TextureVAE, TextureVAEConfig

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
# Attention modules in LDM's words, in those of diffusers before 0.14, and today's.
LDM_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def texture_vae_from_ldm(state_dict: Mapping[str, Tensor]) -> tuple[TextureVAEConfig, dict[str, Tensor]]:
    """An LDM-style KL autoencoder's state dict as our configuration and state dict.

    Training-only parts (discriminator, aligned foundation model) are ignored. Group norms have 32 groups, as
    everywhere in LDM.

    Raises:
        UserError: something is missing, unknown or of another shape, by LDM's names.
    """
    weights = {key: tensor for key, tensor in state_dict.items() if not key.startswith(TRAINING_ONLY)}
    levels = count_numbers(weights, r"encoder\.down\.(\d+)\.block\.0\.conv1\.weight$")
    if not levels:
        raise UserError(f"the checkpoint is not {KIND}: encoder.down.0.block.0.conv1.weight is missing")
    widths = [shape_of(weights, f"encoder.down.{level}.block.0.conv1.weight", 4, KIND)[0] for level in range(levels)]
    config = _config(
        channels=shape_of(weights, "decoder.conv_in.weight", 4, KIND)[1],
        block_channels=tuple(widths),
        layers_per_block=count_numbers(weights, r"encoder\.down\.0\.block\.(\d+)\.conv1\.weight$"),
        attention_levels=tuple(level for level in range(levels) if f"encoder.down.{level}.attn.0.q.weight" in weights),
        mid_attention="encoder.mid.attn_1.q.weight" in weights,
        norm_groups=LDM_NORM_GROUPS,
    )
    return config, _fitted(config, weights, lambda key: _from_ldm_name(key, levels), lambda key: _ldm_name(key, levels))


def texture_vae_to_ldm(config: TextureVAEConfig, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our texture VAE's state dict under LDM's names, the linear layers of attention as 1x1 convolutions.

    Folding latent pixels into channels is no matter of the weights: LDM's code gives the latent unfolded.

    Raises:
        UserError: LDM's code would compute something else with these weights.
    """
    if config.norm_groups != LDM_NORM_GROUPS:
        raise UserError(
            f"LDM's autoencoders have group norms of {LDM_NORM_GROUPS} groups, this one of {config.norm_groups};"
            " it cannot be written in their layout"
        )
    exported: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        convolution = ".attentions." in key and tensor.ndim == 2
        exported[_ldm_name(key, len(config.block_channels))] = tensor[:, :, None, None] if convolution else tensor
    return exported


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
    if description.get("act_fn", "silu") != "silu":
        raise UserError(
            f"the diffusers autoencoder has the activation {description['act_fn']}; only silu is known here"
        )
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
    except (TypeError, AttributeError) as error:
        raise UserError(f"config.json of the diffusers autoencoder is damaged ({error}); copy it again") from None
    is_old = any(re.search(r"\.attentions\.\d+\.(query|proj_attn)\.", key) for key in weights)
    attention = OLD_ATTENTION if is_old else {}
    return config, _fitted(
        config,
        weights,
        lambda key: f"autoencoder.{_attention_renamed(key, attention)}",
        lambda key: _attention_renamed(key.removeprefix("autoencoder."), _inverse(attention)),
    )


def _config(**values: Any) -> TextureVAEConfig:
    try:
        return TextureVAEConfig(**values)
    except ValueError as error:
        raise UserError(f"the checkpoint is not an autoencoder that can be built here: {error}") from None


def _from_ldm_name(key: str, levels: int) -> str:
    """LDM's name -> ours; a stranger's comes back behind our prefix."""
    for theirs, ours in LDM_MODULES:
        key = _renamed(key, theirs, ours)
    return f"autoencoder.{_attention_renamed(_turned(key, 'up_blocks', levels), LDM_ATTENTION)}"


def _ldm_name(key: str, levels: int) -> str:
    """Our name -> LDM's."""
    key = _attention_renamed(key.removeprefix("autoencoder."), _inverse(LDM_ATTENTION))
    for theirs, ours in LDM_MODULES:
        key = _renamed(key, ours, theirs)
    return _turned(key, "up", levels)


def _attention_renamed(key: str, names: Mapping[str, str]) -> str:
    """`key`, in diffusers' paths, with the module inside an attention block replaced."""
    match = re.fullmatch(r"(.+\.attentions\.\d+)\.(.+)\.(weight|bias)", key)
    if not match or match[2] not in names:
        return key
    return f"{match[1]}.{names[match[2]]}.{match[3]}"


def _inverse(names: Mapping[str, str]) -> dict[str, str]:
    return {new: old for old, new in names.items()}


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


def _fitted(
    config: TextureVAEConfig,
    weights: Mapping[str, Tensor],
    rename: Callable[[str], str],
    name_of: Callable[[str], str],
) -> dict[str, Tensor]:
    """The weights under our names, the 1x1 convolutions of attention as linear layers, checked."""
    fitted, name_of = renamed(weights, rename, name_of)
    for key, tensor in fitted.items():
        if ".attentions." in key and tensor.shape[2:] == (1, 1):
            fitted[key] = tensor.flatten(1)
    with torch.device("meta"):
        require_fit(TextureVAE(config), fitted, "the checkpoint", name_of)
    return fitted

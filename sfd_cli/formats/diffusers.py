"""diffusers' AutoencoderKL, on which our texture VAE is built: a folder of `config.json` and safetensors."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfd_cli.files import read_json, write_json
from sfd_cli.formats.format import Content, Format, FormatError, Hints, ModelParts
from sfd_cli.formats.model_folder import CONFIG, ONLY_WEIGHTS, save_weights
from sfd_cli.formats.state_dicts import renamed, require_fit
from sfd_cli.formats.torch_files import read_safetensors
from sfd_cli.networks.texture_vae import TextureVAE, TextureVAEConfig

WEIGHTS = f"{ONLY_WEIGHTS}.safetensors"
PREFIX = "autoencoder."
"""Of the autoencoder's tensors in our texture VAE."""
# What diffusers notes of itself that its readers want to know.
KEPT = ("_class_name", "_diffusers_version")
# Attention modules before diffusers 0.14, and today.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def texture_vae_from_diffusers(
    description: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> tuple[TextureVAEConfig, dict[str, Tensor]]:
    """A diffusers `AutoencoderKL`, its `config.json` and weights, as our configuration and state dict.

    Its scaling factor is left out: latents are normalised by their own statistics here.

    Raises:
        FormatError: it is another kind of autoencoder, or keys do not fit.
    """
    config = _config_of(description)
    is_old = any(re.search(r"\.attentions\.\d+\.(query|proj_attn)\.", key) for key in weights)
    attention = OLD_ATTENTION if is_old else {}
    return config, fitted_weights(
        config,
        weights,
        lambda key: f"{PREFIX}{rename_attention(key, attention)}",
        lambda key: rename_attention(key.removeprefix(PREFIX), inverse(attention)),
    )


def _config_of(description: Mapping[str, Any]) -> TextureVAEConfig:
    if description.get("_class_name") != "AutoencoderKL":
        raise FormatError(f"is a {description.get('_class_name')}", "only diffusers' AutoencoderKL can be read")
    if description.get("act_fn", "silu") != "silu":
        raise FormatError(f"has act_fn {description['act_fn']}", "only silu can be read")
    try:
        kinds = description["down_block_types"]
        return autoencoder_config(
            channels=description["latent_channels"],
            block_channels=tuple(description["block_out_channels"]),
            layers_per_block=description.get("layers_per_block", 1),
            attention_levels=tuple(level for level, kind in enumerate(kinds) if kind.startswith("Attn")),
            mid_attention=description.get("mid_block_add_attention", True),
            norm_groups=description.get("norm_num_groups", 32),
        )
    except KeyError as error:
        raise FormatError(f"has no {error} in {CONFIG}", "copy the folder again") from None
    except (TypeError, AttributeError) as error:
        raise FormatError(f"has a damaged {CONFIG} ({error})", "copy it again") from None


def write_autoencoder(vae: TextureVAE, folder: Path) -> None:
    """Write the autoencoder inside a texture VAE as diffusers does, for `AutoencoderKL.from_pretrained`.

    Its latents are as they come, neither folded nor scaled: the scaling factor is 1.
    """
    autoencoder = vae.autoencoder
    weights = {key.removeprefix(PREFIX): tensor for key, tensor in vae.state_dict().items()}
    save_weights(folder / WEIGHTS, weights)
    said = json.loads(autoencoder.to_json_string())  # also where it was loaded from, which is nobody's business
    kept = {key: value for key, value in said.items() if not key.startswith("_") or key in KEPT}
    write_json(folder / CONFIG, kept | {"scaling_factor": 1.0})


def held_autoencoder(autoencoder: Any, texture_channels: int) -> TextureVAE:
    """The texture VAE around an AutoencoderKL that diffusers has loaded, which is not copied.

    Args:
        autoencoder: diffusers' AutoencoderKL.
        texture_channels: of the transformer that it is to decode for, which tell how its latent is folded.

    Raises:
        FormatError: it is another kind of autoencoder.
    """
    description = dict(autoencoder.config) | {"_class_name": type(autoencoder).__name__}
    config = _config_of(description)
    config = replace(config, space_to_depth=fold(config, Hints(texture_channels=texture_channels)))
    with torch.device("meta"):
        vae = TextureVAE(config)
    vae.autoencoder = autoencoder
    return vae.eval().requires_grad_(False)


def autoencoder_config(**values: Any) -> TextureVAEConfig:
    """The configuration, of unvalidated values; FormatError where there is no such autoencoder."""
    try:
        return TextureVAEConfig(**values)
    except ValueError as error:
        raise FormatError(f"is not an autoencoder that can be built here: {error}") from None


def rename_attention(key: str, names: Mapping[str, str]) -> str:
    """`key`, in diffusers' paths, with the module inside an attention block replaced."""
    match = re.fullmatch(r"(.+\.attentions\.\d+)\.(.+)\.(weight|bias)", key)
    if not match or match[2] not in names:
        return key
    return f"{match[1]}.{names[match[2]]}.{match[3]}"


def inverse(names: Mapping[str, str]) -> dict[str, str]:
    """The same names the other way round."""
    return {new: old for old, new in names.items()}


def fitted_weights(
    config: TextureVAEConfig,
    weights: Mapping[str, Tensor],
    rename: Callable[[str], str],
    name_of: Callable[[str], str],
) -> dict[str, Tensor]:
    """The weights under our names, the 1x1 convolutions of attention as linear layers, checked.

    Raises:
        FormatError: they are not the weights of that autoencoder.
    """
    fitted, name_of = renamed(weights, rename, name_of)
    for key, tensor in fitted.items():
        if ".attentions." in key and tensor.shape[2:] == (1, 1):
            fitted[key] = tensor.flatten(1)
    with torch.device("meta"):
        require_fit(TextureVAE(config), fitted, name_of)
    return fitted


def fold(config: TextureVAEConfig, hints: Hints) -> int:
    """How the latent of a texture VAE of another code is folded: its weights do not tell."""
    if hints.texture_channels is not None:
        side = math.isqrt(hints.texture_channels // config.channels)
        return side if side * side * config.channels == hints.texture_channels else 1
    return hints.space_to_depth or 1


def _read(content: Content, hints: Hints) -> ModelParts:
    folder = content.path
    description = read_json(folder / CONFIG) if (folder / CONFIG).exists() else None
    if isinstance(description, dict) and isinstance(description.get("type"), str):
        raise FormatError(f"is one of our model folders already ({description['type']})", "use it as it is")
    if not isinstance(description, dict) or "_class_name" not in description:
        raise FormatError(f"is no folder of diffusers (no {CONFIG} with a _class_name)", "check the path")
    if not (folder / WEIGHTS).exists():
        raise FormatError(f"holds no {WEIGHTS}", "save it again with save_pretrained and safe_serialization=True")
    config, weights = texture_vae_from_diffusers(description, read_safetensors(folder / WEIGHTS))
    return ModelParts("TextureVAE", replace(config, space_to_depth=fold(config, hints)), {"model": weights})


FORMAT = Format(
    "TextureVAE",
    TextureVAEConfig,
    matches=lambda content: content.path.is_dir(),
    read=_read,
    hints=("space_to_depth", "texture_channels"),
)

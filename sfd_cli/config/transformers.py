"""Sections of the transformers: the one that samples, its guide, and the probe of a schedule."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    model_validator,
)

from sfd_cli.architecture import (
    require_block,
    require_transformer,
)
from sfd_cli.config.accumulation import ACCUMULATE_HELP, Accumulate, least_micro_batches
from sfd_cli.config.adapters import Adapter, unless_nothing
from sfd_cli.config.section import Section
from sfd_cli.config.start import Start
from sfd_cli.errors import SettingError
from sfd_cli.laws import (
    DEFAULT_LAW,
    KNOTS_HELP,
    LEAD_HELP,
    LEARNED,
    SLOPE_HELP,
    TRAINED_LAW_HELP,
    is_synchronous,
    require_path,
    require_read,
)
from sfd_cli.tables import SCHEDULES


def _law(name: str) -> str:
    return name if name == LEARNED else SCHEDULES.require(name)


class DiT(Start):
    """`train`: a LightningDiT trained with the asynchronous objective."""

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
    lead: float = Field(0.0, description=LEAD_HELP)
    lead_slope: float = Field(0.0, gt=-4, lt=4, description=SLOPE_HELP)
    knots: Annotated[list[float], AfterValidator(require_path)] = Field([], description=KNOTS_HELP)
    objective: Literal["paper", "corrected"] = Field(
        "paper",
        description="paper: progress is drawn; corrected: each stream sees the same times under every schedule",
    )
    lead_jitter: float = Field(
        0.0,
        ge=0,
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
    dispersive_weight: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="weight of the dispersive loss, which keeps hidden states of different images apart and needs no"
        " encoder; 0: none; the paper's is 0.5",
    )
    dispersive_depth: int | None = Field(
        None, gt=0, description="the block whose output it looks at, counted from 1; unset: a quarter of depth"
    )
    dispersive_temperature: float = Field(
        0.5, gt=0, allow_inf_nan=False, description="mean squared distance by which a pair counts 1 / e in it"
    )
    dispersive_group: int = Field(
        16, ge=2, description="images that are kept apart from each other, consecutive ones of the batch"
    )
    time_mean: float = Field(
        0.0,
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
    adapter: Annotated[Adapter | None, AfterValidator(unless_nothing)] = Field(
        None, description="train low-rank updates of the transformer at init and leave it as it is; unset: train it all"
    )
    steps: int = Field(
        400_000, gt=0, description="optimiser steps; more steps continue a finished run, unless decay shapes it by them"
    )
    batch_size: int = Field(256, gt=0, description="images per optimiser step, over all processes")
    accumulate: Accumulate = Field("auto", description=ACCUMULATE_HELP)
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
        description="auto: bf16 autocast on CUDA, NPUs and XPUs, fp32 elsewhere; native: bf16 also on a CPU that"
        " multiplies in it",
    )
    compile: bool | Literal["auto"] = Field(
        "auto",
        description="torch.compile the blocks: faster steps, a slower first one; auto: on CUDA where there are 1,000"
        " steps or more to take, and not elsewhere",
    )
    checkpoint_activations: bool = Field(False, description="recompute block activations to save memory")
    checkpoint_every: int = Field(10_000, gt=0, description="steps between checkpoints")
    keep_every: int = Field(
        0,
        ge=0,
        description="steps between milestones, averaged weights that are kept in the model's folder; 0: none",
    )
    log_every: int = Field(100, gt=0, description="steps between logged losses")
    sample_every: int = Field(10_000, ge=0, description="steps between sample grids; 0: none")
    seed: int = Field(0, ge=0, description="seed of weights, order, times, noise and label dropout")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        repa_depth = 0 if self.repa == "none" else self.repa_depth
        require_transformer(width=self.width, depth=self.depth, heads=self.heads, rope=self.rope, repa_depth=repa_depth)
        if self.batch_size % self.micro_batches:
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

    @model_validator(mode="after")
    def _keeps_some(self) -> Self:
        if self.keep_every > self.steps:
            problem = f"{self.keep_every} is more than steps {self.steps}, so that none would be kept"
            raise SettingError("keep_every", problem, "use fewer, or 0 for none")
        return self

    @model_validator(mode="after")
    def _adapts_something(self) -> Self:
        if self.adapter is not None and self.init is None:
            problem = "needs a transformer to adapt, but init is unset"
            raise SettingError("adapter", problem, "name one, or leave the adapter out")
        if self.adapter is not None and self.adapter.rank > self.width:
            problem = f"{self.adapter.rank} is more than width {self.width}, where an update has full rank already"
            raise SettingError("adapter.rank", problem, "lower it, or leave the adapter out to train all weights")
        if self.adapter is not None and self.init_learning_rate_scale != 1:
            problem = f"{self.init_learning_rate_scale:g} is for weights that an adapter leaves as they are"
            raise SettingError("init_learning_rate_scale", problem, "leave it or the adapter out")
        return self

    @model_validator(mode="after")
    def _disperses(self) -> Self:
        require_block("dispersive_depth", self.hidden_depth, self.depth)
        self.require_whole_groups()
        return self

    @property
    def micro_batches(self) -> int:
        """Micro-batches per optimiser step and process; with accumulate: auto the fewest there may be."""
        return least_micro_batches(self.accumulate)

    @property
    def hidden_depth(self) -> int:
        """The block whose output the dispersive loss looks at, counted from 1; 0 where there is no such loss."""
        return (self.dispersive_depth or max(self.depth // 4, 1)) if self.dispersive_weight else 0

    def require_whole_groups(self, processes: int = 1) -> None:
        """Check that no group of the dispersive loss is cut by micro-batches or processes: it would be another loss.

        Raises:
            SettingError: one is.
        """
        images = self.batch_size // (self.micro_batches * processes)
        if self.dispersive_weight and images % self.dispersive_group:
            problem = f"{self.dispersive_group} does not divide the {images} images that a process takes at a time"
            raise SettingError("dispersive_group", problem, f"use a divisor of {images}, or a larger batch_size")


class Probe(DiT):
    """The small network of `learn-schedule`, trained with a lead of each image's own: it knows every schedule."""

    width: int = Field(384, gt=0, description=DiT.model_fields["width"].description)
    depth: int = Field(12, gt=0, description=DiT.model_fields["depth"].description)
    heads: int = Field(6, gt=0, description=DiT.model_fields["heads"].description)
    schedule: Literal["lead"] = Field("lead", description="leads around `lead`, uniform within `lead_jitter`")
    lead: float = Field(1.5, description=LEAD_HELP)
    lead_jitter: float = Field(3.5, ge=0, description=DiT.model_fields["lead_jitter"].description)
    objective: Literal["corrected"] = Field(
        "corrected",
        description="each stream sees the same times along every lead, so that none is judged by how rare it was",
    )
    ema_decay: float = Field(0.999, ge=0, lt=1, description=DiT.model_fields["ema_decay"].description)
    repa: Literal["none"] = Field("none", description="the probe learns from the latents alone")
    holdout: float = Field(0.1, gt=0, lt=1, description="fraction of the images that the schedule is judged on")
    steps: int = Field(10_000, gt=0, description=DiT.model_fields["steps"].description)
    sample_every: int = Field(0, ge=0, description=DiT.model_fields["sample_every"].description)


class LearnSchedule(Section):
    """`learn-schedule`: what schedule a small network's own errors speak for."""

    learn: bool = Field(False, description="learn a schedule, for dit.schedule: learned and guide.schedule: learned")
    probe: Probe = Field(Probe(), description="the small network")
    levels: int = Field(9, ge=3, description="noise levels of each stream at which its errors are taken")
    lowest: float = Field(-4.0, description="the first level, in logit time")
    highest: float = Field(2.2, description="the last level, in logit time; 2.2 is t = 0.9")
    highest_semantic: float = Field(
        0.0,
        description="up to which level semantics are judged, in logit time; 0 is as much noise as image, and finer"
        " detail of them is never decoded",
    )
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
        if not self.lowest < self.highest_semantic <= self.highest:
            problem = f"{self.highest_semantic} is not between lowest {self.lowest} and highest {self.highest}"
            raise SettingError("highest_semantic", problem, "choose a level between them")
        return self

"""Sections about sampling, scores and the page, and about checkpoints of other code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    model_validator,
)

from sfd_cli.config.data import Encoder
from sfd_cli.config.section import Section
from sfd_cli.config.transformers import DiT
from sfd_cli.errors import SettingError
from sfd_cli.laws import (
    DEFAULT_LAW,
    KNOTS_HELP,
    LAW_HELP,
    LAW_NUMBERS,
    LEAD_HELP,
    SLOPE_HELP,
    law_name,
    law_of,
    require_path,
    require_read,
)
from sfd_cli.tables import METRICS, PROTOCOLS, SCHEDULES, SOLVERS

EDITS = ("image", "mask", "keep", "start_time", "to_seed", "to_class")
"""Keys of the section `sample` that are of one run's pictures, not of a model's sampling; docs/sampling.md."""


def _class_label(value: Any) -> Any:
    """A class as settings give it; YAML reads null as None."""
    if value is None:
        return "null"
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise SettingError("", f"{value!r} is no class", "give indices or names of classes")
    return value


ClassLabel = Annotated[int | str, BeforeValidator(_class_label)]
"""A class by its index or its name, or `null`: the null label."""


class Sample(Section):
    """`sample`: integrate the flow from noise, decode textures, write PNGs and an npz."""

    protocol: Annotated[str, AfterValidator(PROTOCOLS.require)] | None = Field(
        None,
        description="as published figures were sampled: sfd, lightningdit, sit, repa or redi; gives the keys that are"
        " not written beside it; unset: none",
    )
    schedule: Annotated[str, AfterValidator(SCHEDULES.require)] | None = Field(
        None, description=f"{LAW_HELP}; unset: offset if delta_t is given, else what the transformer was trained with"
    )
    delta_t: float | None = Field(
        None, ge=0, le=1, description="offset by which semantics lead textures; unset: as schedule says"
    )
    lead: float | None = Field(None, description=LEAD_HELP)
    lead_slope: float | None = Field(None, gt=-4, lt=4, description=SLOPE_HELP)
    knots: Annotated[list[float], AfterValidator(require_path)] | None = Field(None, description=KNOTS_HELP)
    steps: int = Field(24, gt=0, description="solver steps over the whole schedule (unused by dopri5)")
    solver: Annotated[str, AfterValidator(SOLVERS.require)] = Field(
        "ab3", description="euler, heun, ab2, ab3, the adaptive dopri5, or euler_maruyama, by the SDE"
    )
    time_grid: Literal["phases", "one-span"] = Field(
        "phases", description="phases: each ends on a breakpoint; one-span: the reference code's equal steps"
    )
    shift: float = Field(1.0, gt=0, description="time shift k: u -> k u / (1 + (k - 1) u); 1 is none")
    rtol: float = Field(1e-3, gt=0, description="relative tolerance of dopri5")
    atol: float = Field(1e-6, gt=0, description="absolute tolerance of dopri5")
    images_at_once: int | None = Field(
        None, gt=0, description="images whose errors decide dopri5's steps together; unset: 16"
    )
    last_step: float = Field(
        0.04, gt=0, lt=1, description="of its own time that a stream's last step by euler_maruyama covers, noiseless"
    )
    guidance: Literal["none", "cfg", "autoguidance"] = Field(
        "none", description="cfg: against the null class; autoguidance: against the guide model"
    )
    scale: float = Field(1.5, ge=0, description="guidance scale of both streams; 1 is no guidance")
    scale_texture: float | None = Field(None, ge=0, description="guidance scale of the textures, over `scale`")
    scale_semantic: float | None = Field(None, ge=0, description="guidance scale of the semantics, over `scale`")
    guidance_channels: int | None = Field(
        None, gt=0, description="guide only so many channels of the latent, the first ones; unset: all"
    )
    interval_start: float = Field(0.0, ge=0, le=1, description="guide from this time of each stream on")
    interval_end: float = Field(1.0, ge=0, le=1, description="guide up to this time of each stream")
    num_images: int = Field(50_000, gt=0, description="images to sample")
    classes: list[ClassLabel] | None = Field(
        None, description="classes by index or name, e.g. 0,3,cat; null is the null label, no class; unset: all"
    )
    class_labels: Literal["balanced", "random"] = Field(
        "balanced", description="balanced: the classes in turn, all equally often; random: drawn by the seed"
    )
    seed: int = Field(0, ge=0, description="image i depends on the seed and i alone")
    batch_size: int = Field(64, gt=0, description="images per network call")
    precision: Literal["auto", "fp32", "bf16", "ieee"] = Field(
        "auto",
        description="of the transformers; auto: bf16 autocast on CUDA, NPUs and XPUs, fp32 elsewhere and by a protocol;"
        " fp32: as the published numbers (TF32 products on CUDA); ieee: float32 products there too",
    )
    compile: bool | Literal["auto"] = Field(
        "auto",
        description="compile the transformers' blocks; auto: on CUDA, where a process of `sfd sample` has 5,000 images",
    )
    to_uint8: Literal["round", "truncate"] = Field(
        "round", description="how pixels become whole numbers: to the nearest, or to the one below"
    )
    weights: Literal["ema", "model"] = Field("ema", description="averaged or last weights")
    to_seed: int | None = Field(
        None, ge=0, description="a strip from the image of seed to that of this seed, the noise by way of the sphere"
    )
    to_class: ClassLabel | None = Field(
        None, description="a strip from the one class of classes to this one, the label's embedding on a line"
    )
    image: Path | None = Field(
        None, description="a picture to make images of, centre-cropped; keep, start_time and mask say how"
    )
    keep: Literal["semantics", "textures"] | None = Field(
        None, description="keep this stream of image, and draw the other one anew"
    )
    start_time: float | None = Field(
        None,
        ge=0,
        le=1,
        description="start from image with noise, at this part of the schedule: 0 is noise alone, 1 image itself",
    )
    mask: Path | None = Field(
        None, description="a black and white picture as large as image: what is white is drawn anew"
    )

    @property
    def edits(self) -> dict[str, Any]:
        """Those of EDITS that are set."""
        return {key: getattr(self, key) for key in EDITS if getattr(self, key) is not None}

    def without_edits(self) -> Self:
        """These settings for pictures from noise alone."""
        return self.model_copy(update=dict.fromkeys(EDITS)) if self.edits else self

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

    @model_validator(mode="before")
    @classmethod
    def _protocol_gives_the_rest(cls, values: Any) -> Any:
        name = values.get("protocol") if isinstance(values, Mapping) else None
        return PROTOCOLS[name].settings | dict(values) if isinstance(name, str) and name in PROTOCOLS else values

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
    """`fid`: Fréchet distances, Inception score, KID, precision, recall and CMMD of the samples."""

    reference: Path | None = Field(
        None,
        description="npz of images or of mu/sigma, an image folder, or adm_imagenet256; unset: the training images",
    )
    scores: list[Annotated[str, AfterValidator(METRICS.require)]] = Field(
        ["fd", "sfid", "inception_score", "kid", "precision_recall", "cmmd"],
        min_length=1,
        description="what to compute: fd, sfid, inception_score, kid, precision_recall, cmmd",
    )
    num_images: int | None = Field(None, gt=0, description="score exactly this many samples; unset: all there are")
    beside: list[Path] = Field(
        [],
        description="other folders or npz of images, scored against the same reference and compared with samples",
    )
    by_class: bool = Field(False, description="also a Fréchet distance of each class, for data sets of few classes")
    inception: Literal["auto", "none"] = Field("auto", description="auto: where its weights are present or fetchable")
    dinov2: Literal["auto", "none"] = Field("none", description="auto: FD-DINOv2 as EDM2 has it; 1.2 GB of weights")
    clip: Literal["auto", "none"] = Field(
        "none", description="auto: CMMD by CLIP ViT-L/14 at 336 px; 1.2 GB of weights"
    )
    lpips: Literal["auto", "none"] = Field(
        "auto", description="LPIPS of the texture codec; auto: where its weights are present (they are never fetched)"
    )
    encoder: Encoder = Field(
        Encoder(weights="demo", image_size=112),
        description="a DINOv2 or other ViT whose class token is scored too; its name is in the scores' names",
    )
    batch_size: int = Field(64, gt=0, description="images per forward pass")
    neighbours: int = Field(3, gt=0, description="k of precision and recall")
    baselines: bool = Field(
        True, description="also score an untrained model, two halves of the data, and both autoencoders"
    )
    seed: int = Field(0, ge=0, description="seed of subsets and of the untrained model")


class Curve(Section):
    """`curve`: scores along a training."""

    repeats: int = Field(
        1, gt=0, description="times that each milestone is sampled and scored, by seeds from sample.seed on"
    )


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

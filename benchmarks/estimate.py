"""What SFD-XL on ImageNet 256x256 would take on 1 and 8 H100s: stated from counted operations, not measured.

`python benchmarks/estimate.py` prints the tables of docs/performance.md. The operations are counted from the networks
of the preset `imagenet256-xl`; everything that was assumed stands in `Assumed`, and is printed with the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sfd_cli.config import DiT, Settings, load_settings
from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig
from sfd_cli.networks.semantic_vae import SemanticVAE, SemanticVAEConfig
from sfd_cli.networks.texture_vae import TextureVAE, TextureVAEConfig
from sfd_cli.networks.visual_encoder import VisualEncoder
from sfd_cli.stages.train import network_config
from sfd_cli.training.throughput import PEAKS, training_flops

PRESET = Path(__file__).parents[1] / "sfd_cli" / "presets" / "imagenet256-xl.yaml"
IMAGES, CLASSES, FLIPS = 1_281_167, 1000, 2
BF16, FP32 = (1e12 * peak for peak in PEAKS["NVIDIA H100"])
TF32 = BF16 / 2
REFERENCE_IMAGES = 10_000  # in the ADM batch
SHARES = (0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True)
class Assumed:
    """What nobody measured here, each with its reason."""

    training_share: float = 0.40
    training_share_of_eight: float = 0.35
    frozen_share: float = 0.40
    fp32_share: float = 0.60
    sampling_share: float = 0.35
    network_calls: int = 60
    cores: int = 16
    decodes: float = 150.0
    thread_efficiency: float = 0.7
    png_writes: float = 60.0
    core_flops: float = 40e9
    selections: float = 30e6
    disk: float = 1e9
    link: float = 300e9
    jpeg_bytes: float = 110e3
    png_bytes: float = 110e3


ASSUMED = Assumed()
REASONS = {
    "training_share": "share of the bf16 peak that training reaches on one GPU, compiled; the target is 0.5",
    "training_share_of_eight": "the same on each of eight, whose part of the batch is 32 images",
    "frozen_share": "share of the TF32 peak that the convolutions of the texture VAE and Inception reach",
    "fp32_share": "share of the float32 peak that matrix products without tensor cores reach",
    "sampling_share": "share of the TF32 peak that sampling reaches (dopri5 takes 16 images at a time)",
    "network_calls": "velocities per image by phase-wise dopri5 at rtol 1e-3, the guide called as often",
    "cores": "CPU cores beside each GPU",
    "decodes": "JPEGs decoded and cropped per second and core",
    "thread_efficiency": "of decoding threads in one process",
    "png_writes": "256 px PNGs written per second and core",
    "core_flops": "float64 FLOP/s of a core in matrix products; twice that in float32",
    "selections": "distances per second and core among which a nearest neighbour is selected",
    "disk": "bytes per second of the disk",
    "link": "bytes per second in each direction between GPUs (NVLink, of 450 GB/s on the data sheet)",
    "jpeg_bytes": "of an image of ImageNet",
    "png_bytes": "of a sample",
}


@dataclass(frozen=True)
class Stage:
    """One stage: seconds that each kind of resource takes, the slowest of which sets its pace."""

    name: str
    operations: float
    precision: str
    device: tuple[float, float]  # seconds on 1 and on 8 GPUs
    processors: tuple[float, float]
    disk: float
    note: str = ""
    overlapped: bool = True

    def seconds(self, eight: bool) -> float:
        """Of the slowest resource, or of all of them where they work one after the other."""
        parts = (self.device[eight], self.processors[eight], self.disk)
        return max(parts) if self.overlapped else sum(parts)

    def bound(self, eight: bool) -> str:
        """The resource that sets the pace."""
        parts = {"GPU": self.device[eight], "CPU": self.processors[eight], "disk": self.disk}
        return max(parts, key=lambda name: parts[name])


class Networks:
    """Operations per image of every network of the preset, forward only; multiply and add are two."""

    def __init__(self, settings: Settings) -> None:
        encoder, semvae = settings.encoder, settings.semvae
        grid, tokens = settings.grid, settings.grid**2
        with torch.device("meta"):
            self.feature_width = VisualEncoder(encoder.name, encoder.image_size).feature_width
        semantic = SemanticVAEConfig(self.feature_width, semvae.channels, semvae.width, semvae.depth, semvae.heads)
        texture = TextureVAEConfig(
            settings.texture_vae.channels,
            tuple(settings.texture_vae.block_channels),
            settings.texture_vae.layers_per_block,
            tuple(settings.texture_vae.attention_levels),
        )
        side = settings.images.size
        channels = texture.channels + semvae.channels
        assert settings.guide is not None
        self.main, self.guide = (
            self._config(settings.grid, channels, semvae.channels, section)
            for section in (settings.dit, settings.guide)
        )
        self.encoder = forward_flops(
            lambda: VisualEncoder(encoder.name, encoder.image_size),
            lambda net: net(torch.empty(1, 3, encoder.image_size, encoder.image_size)),
        )
        self.semantic_encoder = forward_flops(
            lambda: SemanticVAE(semantic), lambda net: net.encode(torch.empty(1, tokens, self.feature_width))
        )
        self.semantic_decoder = forward_flops(
            lambda: SemanticVAE(semantic), lambda net: net.decode(torch.empty(1, tokens, semvae.channels))
        )
        self.texture_encoder = forward_flops(
            lambda: TextureVAE(texture), lambda net: net.encode(torch.empty(1, 3, side, side))
        )
        self.texture_decoder = forward_flops(
            lambda: TextureVAE(texture), lambda net: net.decode(torch.empty(1, texture.channels, grid, grid))
        )
        self.main_training, self.guide_training = (
            3 * transformer_flops(config, project=True) + self.semantic_decoder for config in (self.main, self.guide)
        )
        self.main_forward, self.guide_forward = (
            transformer_flops(config, project=False) for config in (self.main, self.guide)
        )
        self.inception = forward_flops(_inception, lambda net: net(torch.empty(1, 3, 299, 299)))

    def _config(self, grid: int, channels: int, semantic: int, section: DiT) -> LightningDiTConfig:
        return network_config(section, (channels, grid, grid), semantic, self.feature_width, CLASSES)


def forward_flops(build: Callable[[], Any], forward: Callable[[Any], object]) -> float:
    """Operations of a forward pass on one image."""
    return training_flops(forward, lambda: build().eval()) / 3


def transformer_flops(config: LightningDiTConfig, project: bool) -> float:
    """Operations of a forward pass of a transformer on one image."""

    def forward(network: nn.Module) -> None:
        x = torch.empty(1, config.in_channels, config.grid, config.grid)
        network(x, torch.empty(1), torch.empty(1), torch.empty(1, dtype=torch.int64), project)

    return forward_flops(lambda: LightningDiT(config), forward)


def _inception() -> nn.Module:
    from torchvision.models import inception_v3

    return inception_v3(weights=None, init_weights=False, transform_input=False)


def parameters(config: LightningDiTConfig) -> int:
    """Of a transformer, the REPA projector included: what is trained and sent around."""
    with torch.device("meta"):
        return sum(value.numel() for value in LightningDiT(config).parameters())


def stages(settings: Settings, networks: Networks, assumed: Assumed = ASSUMED) -> list[Stage]:
    """The whole chain, from images to scores."""
    held = settings.features.max_images or IMAGES
    assert settings.guide is not None
    decoding = assumed.decodes * assumed.thread_efficiency * assumed.cores
    tokens = settings.grid**2

    def plain(operations: float, both: bool = True) -> tuple[float, float]:
        seconds = operations / (FP32 * assumed.fp32_share)
        return seconds, seconds / 8 if both else seconds

    def training(operations: float) -> tuple[float, float]:
        one = operations / (BF16 * assumed.training_share)
        return one, operations / (8 * BF16 * assumed.training_share_of_eight)

    extraction = held * FLIPS * networks.encoder
    semvae = settings.semvae.steps * settings.semvae.batch_size
    semvae_work = 3 * semvae * (networks.semantic_encoder + networks.semantic_decoder)
    # Stored features are taken as they are; every other image goes through the encoder.
    products = FLIPS * ((IMAGES - held) * networks.encoder + IMAGES * networks.semantic_encoder)
    convolutions = FLIPS * IMAGES * networks.texture_encoder
    encoding = products / (FP32 * assumed.fp32_share) + convolutions / (TF32 * assumed.frozen_share)
    main, guide = (section.steps * section.batch_size for section in (settings.dit, settings.guide))
    images = settings.sample.num_images
    velocities = images * assumed.network_calls * (networks.main_forward + networks.guide_forward)
    decoding_samples = images * networks.texture_decoder
    sampling = velocities / (TF32 * assumed.sampling_share) + decoding_samples / (TF32 * assumed.frozen_share)
    scored = images + REFERENCE_IMAGES
    seeing = plain(scored * networks.encoder)[0] + scored * networks.inception / (TF32 * assumed.frozen_share)
    jpegs = IMAGES * assumed.jpeg_bytes / assumed.disk
    return [
        Stage(
            "`sfd extract-features`",
            extraction,
            "fp32",
            plain(extraction, both=False),
            (held / decoding, held / decoding),
            held * (feature_bytes(networks, tokens) + assumed.jpeg_bytes) / assumed.disk,
            "one process",
        ),
        Stage(
            "`sfd train-semvae`",
            semvae_work,
            "fp32",
            plain(semvae_work),
            (0, 0),
            0,
            "none if `semvae.weights: sfd_semvae` imports it",
        ),
        Stage(
            "`sfd encode-latents`",
            products + convolutions,
            "fp32, convolutions TF32",
            (encoding, encoding / 8),
            (IMAGES / decoding, IMAGES / decoding / 8),
            jpegs + IMAGES * latent_bytes(networks, settings) / assumed.disk,
        ),
        Stage(
            "`sfd train`, 80 epochs",
            main * networks.main_training,
            "bf16",
            training(main * networks.main_training),
            (0, 0),
            main * latent_bytes(networks, settings) / FLIPS / assumed.disk,
        ),
        Stage(
            "`sfd train --model guide`",
            guide * networks.guide_training,
            "bf16",
            training(guide * networks.guide_training),
            (0, 0),
            guide * latent_bytes(networks, settings) / FLIPS / assumed.disk,
        ),
        Stage(
            f"`sfd sample`, {images:,}",
            velocities + decoding_samples,
            "TF32",
            (sampling, sampling / 8),
            (images / (assumed.png_writes * assumed.cores), images / (assumed.png_writes * assumed.cores) / 8),
            images * (assumed.png_bytes + settings.images.size**2 * 3) / assumed.disk,
        ),
        Stage(
            "`sfd fid`",
            scored * (networks.inception + networks.encoder)
            + metric_flops(images, 2048)
            + metric_flops(images, networks.feature_width),
            "fp32; metrics on the CPU",
            (seeing, seeing),
            (images / decoding + metric_seconds(images, networks, assumed),) * 2,
            images * assumed.png_bytes / assumed.disk,
            "one process",
            overlapped=False,
        ),
    ]


def metric_flops(images: int, width: int) -> float:
    """Operations of KID (100 subsets of 1,000), precision and recall, moments and the eigendecompositions."""
    return 100 * 3 * 2e6 * width + 2.0 * width * distances(images) + 2.0 * width**2 * images + 25.0 * width**3


def distances(images: int) -> float:
    """Distances that precision and recall compare: within each set, and between the two twice."""
    return float(images**2 + REFERENCE_IMAGES**2 + 2 * images * REFERENCE_IMAGES)


def metric_seconds(images: int, networks: Networks, assumed: Assumed) -> float:
    """Of both extractors' metrics on the CPU."""
    seconds = 0.0
    for width in (2048, networks.feature_width):
        single = 2.0 * width * distances(images)
        double = metric_flops(images, width) - single
        seconds += (double + single / 2) / (assumed.core_flops * assumed.cores)
        seconds += distances(images) / (assumed.selections * assumed.cores)
    return seconds


def latent_bytes(networks: Networks, settings: Settings) -> int:
    """Of one image's stored latents, both flips, float16."""
    return FLIPS * networks.main.in_channels * settings.grid**2 * 2


def feature_bytes(networks: Networks, tokens: int) -> int:
    """Of one image's stored patch tokens, both flips, float16."""
    return FLIPS * tokens * networks.feature_width * 2


def print_stages(found: list[Stage]) -> None:
    """Hours by stage."""
    print("| stage | operations, PFLOP | precision | 1 H100, hours | pace set by | 8 H100s, hours | pace set by | |")
    print("|---|---|---|---|---|---|---|---|")
    for stage in found:
        cells = [stage.name, f"{stage.operations / 1e15:,.0f}", stage.precision]
        for eight in (False, True):
            cells += [f"{stage.seconds(eight) / 3600:.2f}", stage.bound(eight)]
        print("| " + " | ".join([*cells, stage.note]) + " |")
    totals = [sum(stage.seconds(eight) for stage in found) / 3600 for eight in (False, True)]
    print(f"| **all** | {sum(stage.operations for stage in found) / 1e15:,.0f} | | **{totals[0]:.1f}** | |", end="")
    print(f" **{totals[1]:.1f}** | | |")


def print_shares(networks: Networks, settings: Settings) -> None:
    """How the longest stage moves with the assumption that matters most."""
    work = settings.dit.steps * settings.dit.batch_size * networks.main_training
    print("| share of the bf16 peak | " + " | ".join(f"{share:.2f}" for share in SHARES) + " |")
    print("|---" * (len(SHARES) + 1) + "|")
    for gpus in (1, 8):
        hours = [f"{work / (gpus * BF16 * share) / 3600:.1f}" for share in SHARES]
        print(f"| 80 epochs of XL on {gpus}, hours | " + " | ".join(hours) + " |")


def print_sizes(networks: Networks, settings: Settings, assumed: Assumed = ASSUMED) -> None:
    """Disk, memory and network."""
    held, images = settings.features.max_images or IMAGES, settings.sample.num_images
    weights, batch = parameters(networks.main), settings.dit.batch_size
    latents, features = latent_bytes(networks, settings), feature_bytes(networks, settings.grid**2)
    read = settings.dit.steps * batch * latents / FLIPS
    # A ring sends and receives every gradient nearly twice.
    sent = 2 * 7 / 8 * weights * 4
    step = batch * networks.main_training / (8 * BF16 * assumed.training_share_of_eight)
    rows = {
        "ImageNet's JPEGs": f"{IMAGES * assumed.jpeg_bytes / 1e9:,.0f} GB",
        f"features of {held:,} images for the Semantic VAE": f"{held * features / 1e9:,.0f} GB",
        "features of all images (only for `repa: stored`)": f"{IMAGES * features / 1e12:.2f} TB",
        "latents, both flips": f"{IMAGES * latents / 1e9:,.0f} GB",
        "a checkpoint of XL (weights, average, two moments); two are kept": f"{weights * 16 / 1e9:.1f} GB",
        f"{images:,} samples, PNG and npz": f"{images * assumed.png_bytes / 1e9:.1f} GB and "
        f"{images * settings.images.size**2 * 3 / 1e9:.1f} GB",
        "latents read by training": f"{read / 1e12:.1f} TB in all, {batch * latents / FLIPS / 1e6:.1f} MB a step;"
        " after the first epoch from the page cache, where it holds them",
        "gradients between 8 GPUs": f"{sent / 1e9:.1f} GB a step and GPU, {1e3 * sent / assumed.link:.0f} ms"
        f" beside a step of {1e3 * step:.0f} ms, sent while the backward pass goes on",
        "fixed memory of training XL (weights, gradients, average, two moments)": f"{weights * 20 / 1e9:.1f} GB a GPU",
    }
    print("| what | how much |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value} |")


def print_assumptions() -> None:
    """Every number that was assumed."""
    print("| assumed | value | what it is |\n|---|---|---|")
    for field in fields(Assumed):
        value = getattr(ASSUMED, field.name)
        print(f"| `{field.name}` | {value:g} | {REASONS[field.name]} |")
    print(f"| peaks of an H100 SXM | {BF16 / 1e12:g}, {TF32 / 1e12:g}, {FP32 / 1e12:g} TFLOP/s", end="")
    print(" | bf16, TF32, fp32, dense, from the data sheet |")


def print_networks(networks: Networks) -> None:
    """Operations per image."""
    named = {
        "DINOv2-B/14 with registers, 224 px": networks.encoder,
        "Semantic VAE, encoder": networks.semantic_encoder,
        "Semantic VAE, decoder": networks.semantic_decoder,
        "SD-VAE f16d32, encoder": networks.texture_encoder,
        "SD-VAE f16d32, decoder": networks.texture_decoder,
        "XL, a velocity": networks.main_forward,
        "B (the guide), a velocity": networks.guide_forward,
        "XL, training with REPA's target decoded": networks.main_training,
        "B, training with REPA's target decoded": networks.guide_training,
        "Inception-v3, 299 px": networks.inception,
    }
    print("| network | GFLOP per image |\n|---|---|")
    for name, value in named.items():
        print(f"| {name} | {value / 1e9:,.1f} |")


def main() -> None:
    """Print all tables."""
    settings = load_settings(PRESET)
    networks = Networks(settings)
    print("Stated, not measured.\n")
    print_stages(stages(settings, networks))
    print()
    print_shares(networks, settings)
    print()
    print_sizes(networks, settings)
    print()
    print_networks(networks)
    print()
    print_assumptions()


if __name__ == "__main__":
    main()

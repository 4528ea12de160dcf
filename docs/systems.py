"""The computed columns of docs/systems.md and docs/finetune.md: parameters, arithmetic, memory and cost, from settings.

`python docs/systems.py` prints the rows of these tables, those of the protocols, and what presets say of memory.
Nothing is allocated and nothing is measured: networks stand on the meta device, and GPU hours follow from a stated
share of a data sheet's peak.
"""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sfd_cli.config import DiT, Settings, load_settings
from sfd_cli.diffusion.latents import LatentSpace
from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig
from sfd_cli.networks.parts import images_at_once
from sfd_cli.networks.texture_vae import TextureVAE, TextureVAEConfig
from sfd_cli.protocols import Protocol
from sfd_cli.tables import PROTOCOLS
from sfd_cli.training.costs import Cost, Costs, step_memory
from sfd_cli.training.texture_vae_task import network_config as texture_config
from sfd_cli.training.throughput import PEAKS
from sfd_cli.training.transformer import flops_per_image, network_config

PRESETS = Path(__file__).parents[1] / "sfd_cli" / "presets"
CLASSES = 1000
# Assumed, not measured: the share of the bf16 peak that training reaches on one H100 SXM.
SHARE_OF_PEAK = 0.4
PEAK = PEAKS["NVIDIA H100"][0] * 1e12
GPUS = ("NVIDIA H100", "NVIDIA A100", "NVIDIA GeForce RTX 4090")
TOKEN_WIDTH = {"s": 384, "b": 768, "l": 1024, "g": 1536}


@dataclass(frozen=True)
class Row:
    """What a preset's transformer is and what its training takes."""

    preset: str
    grid: int
    channels: str
    network: str
    parameters: float  # millions, without the REPA projector, which sampling does not need
    gigaflops: float  # of training on one image
    images: float  # millions that training looks at
    gpu_hours: float
    protocol: str | None

    def __str__(self) -> str:
        return (
            f"| `{self.preset}` | {self.grid}x{self.grid} | {self.channels} | {self.network}"
            f" | {self.parameters:,.1f} | {self.gigaflops:,.0f} | {self.images:,.1f} | {self.gpu_hours:,.1f}"
            f" | {f'`{self.protocol}`' if self.protocol else 'none'} |"
        )


def architecture(settings: Settings, section: DiT) -> LightningDiTConfig:
    """What `sfd train` builds for a section of a preset on ImageNet's classes."""
    semantic = settings.semvae.channels if section.semantics else 0
    space = LatentSpace(settings.texture_vae.latent_channels, semantic, settings.grid)
    return network_config(section, space, token_width(settings.encoder.name), CLASSES)


def token_width(encoder: str) -> int:
    """Width of the patch tokens of a DINOv2 named `dinov2_vit{s,b,l,g}14...`."""
    return TOKEN_WIDTH[encoder.removeprefix("dinov2_vit")[0]]


# Presets that differ in training alone have one architecture.
@cache
def count_parameters(config: LightningDiTConfig) -> int:
    """Parameters without the REPA projector, as published counts have them."""
    with torch.device("meta"):
        network = LightningDiT(config)
    return sum(value.numel() for name, value in network.named_parameters() if not name.startswith("projector."))


@cache
def row(preset: str) -> Row:
    """The row of a preset, for its main transformer; a guide is the row of imagenet256-guide-b."""
    settings = load_settings(PRESETS / f"{preset}.yaml")
    section = settings.dit
    config = architecture(settings, section)
    flops, images = flops_per_image(config), section.steps * section.batch_size
    texture = config.in_channels - config.semantic_channels
    patch = f", patch {config.patch_size}" if config.patch_size > 1 else ""
    return Row(
        preset,
        config.grid,
        f"{texture} + {config.semantic_channels}" if config.semantic_channels else str(texture),
        f"{config.depth} x {config.width}, {config.heads} heads{patch}",
        count_parameters(config) / 1e6,
        flops / 1e9,
        images / 1e6,
        flops * images / (SHARE_OF_PEAK * PEAK) / 3600,
        settings.sample.protocol,
    )


def rows() -> list[Row]:
    """Every preset of ImageNet: of a folder, which others do without, and trained from nothing."""
    names = [path.stem for path in sorted(PRESETS.glob("*.yaml"))]
    settings = {name: load_settings(PRESETS / f"{name}.yaml") for name in names}
    return [row(name) for name in names if settings[name].images.source == "folder" and settings[name].dit.init is None]


@dataclass(frozen=True)
class Memory:
    """What a preset asks of one GPU, GB: a step of its main transformer, and encoding its latents.

    Of a step: weights, gradients, moments, average, and what is kept for the backward pass, in bf16. Libraries'
    workspaces, the weights' copies in bf16 and what lies in pieces come on top.
    """

    preset: str
    fixed: float
    per_image: float
    gpus: int
    images: int  # of a GPU's share of a step
    encoding: float  # weights and tensors alive at once while the texture VAE encodes

    @property
    def share(self) -> float:
        """Of a GPU's whole share of a step at once."""
        return self.fixed + self.images * self.per_image

    @property
    def least(self) -> float:
        """Of one image at a time."""
        return self.fixed + self.per_image

    def __str__(self) -> str:
        return (
            f"| `{self.preset}` | {self.fixed:.1f} | {self.per_image:.2f} | {self.gpus} x {self.images} images"
            f" | {self.share:.0f} | {self.least:.1f} | {self.encoding:.1f} |"
        )

    @property
    def header(self) -> str:
        """What the preset's file says of it."""
        of = f"on {self.gpus} GPUs" if self.gpus > 1 else "on one GPU"
        return (
            f"# Memory of a GPU, computed and not measured: `sfd train` {of} {self.share:.0f} GB,"
            f" or {self.least:.0f} image by image\n"
            f"# (dit.accumulate: auto cuts a batch into parts that fit); `sfd encode-latents` {self.encoding:.0f} GB."
        )


@cache
def memory(preset: str) -> Memory:
    """What a preset asks of a GPU: of one of eight where it is trained from nothing, else of one alone."""
    settings = load_settings(PRESETS / f"{preset}.yaml")
    section, gpus, side = settings.dit, 8 if settings.dit.init is None else 1, settings.images.size
    fixed, one = _step(architecture(settings, section), section.checkpoint_activations)
    views = min(settings.latents.batch_size * settings.images.flips, images_at_once(side))
    encoding = _encoding(texture_config(settings.texture_vae), side, views)
    return Memory(preset, fixed, one - fixed, gpus, section.batch_size // gpus, encoding)


def memories() -> list[Memory]:
    """Of every preset of a folder of images."""
    names = [path.stem for path in sorted(PRESETS.glob("*.yaml"))]
    return [memory(name) for name in names if load_settings(PRESETS / f"{name}.yaml").images.source == "folder"]


@cache
def _step(config: LightningDiTConfig, recomputed: bool) -> tuple[float, float]:
    """GB of a training step of no image, and of one."""
    section = DiT(checkpoint_activations=recomputed)
    fixed, one = (step_memory(config, section, images, bf16=True) / 1e9 for images in (0, 1))
    return fixed, one


@cache
def _encoding(config: TextureVAEConfig, side: int, images: int) -> float:
    """GB that a texture VAE has at once, weights counted, of so many images in a call."""
    with torch.device("meta"), torch.inference_mode():
        network = TextureVAE(config).eval()
        pixels = torch.empty(images, 3, side, side)
        with Alive() as alive:
            network.encode(pixels)
    return (alive.peak + sum(weight.nbytes for weight in network.parameters())) / 1e9


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors that are made in a block and are alive at once; `peak` is the most of them."""

    def __init__(self) -> None:
        super().__init__()
        self.owners: Counter[int] = Counter()
        self.bytes = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note what it makes."""
        found = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                self._note(tensor)
        return found

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        self.bytes += 0 if self.owners[key] else size
        self.owners[key] += 1
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(tensor, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self.owners[key] -= 1
        self.bytes -= 0 if self.owners[key] else size


def finetune_rows(images: int = 1000, classes: int = 10) -> list[str]:
    """What each stage of `finetune-sfd-xl` takes on so many images of one's own, as docs/finetune.md has it."""
    settings = load_settings(PRESETS / "finetune-sfd-xl.yaml")
    stages = Costs(settings, images, classes, prepared=0).stages()
    rows, total = [], dict.fromkeys(GPUS, 0.0)
    for stage, cost in stages.items():
        if cost.operations:
            hours = {gpu: cost.operations / (SHARE_OF_PEAK * _peak(gpu, cost)) / 3600 for gpu in GPUS}
            total = {gpu: total[gpu] + hours[gpu] for gpu in GPUS}
            rows.append(f"| `sfd {stage}` | {cost.images:,} | {cost.operations / 1e15:,.1f} | {_cells(hours)} |")
    return [*rows, f"| all | | | {_cells(total)} |"]


def _peak(gpu: str, cost: Cost) -> float:
    """FLOP/s of matrix products by the data sheet: transformers are trained in bf16, as `sfd plan` has it."""
    bf16, fp32 = PEAKS[gpu]
    return 1e12 * (fp32 if cost.section is None else bf16)


def _cells(hours: dict[str, float]) -> str:
    return " | ".join(f"{value:.2f}" for value in hours.values())


def finetune_memory() -> dict[str, float]:
    """GB that a training step of its transformers takes, as `sfd plan` estimates it, and of XL without recomputing."""
    settings = load_settings(PRESETS / "finetune-sfd-xl.yaml")
    costs, dit, guide = Costs(settings, 1000, 10, prepared=0), settings.dit, settings.guide
    assert guide is not None
    sections = {"dit": dit, "kept": dit.model_copy(update={"checkpoint_activations": False}), "guide": guide}
    return {
        name: step_memory(costs.transformer(section), section, section.batch_size, bf16=True) / 1e9
        for name, section in sections.items()
    }


def protocol_rows() -> list[str]:
    """Every protocol: labels, solver, guided channels and times, pixels, and where that is from."""
    return [_protocol_row(name, PROTOCOLS[name]) for name in PROTOCOLS]


def _protocol_row(name: str, protocol: Protocol) -> str:
    if protocol.steps is None:
        steps = f"rtol {protocol.rtol}, atol {protocol.atol}, {protocol.images_at_once} images at once"
    else:
        steps = f"{protocol.steps} steps"
    shift = "" if protocol.shift is None else f", shift {protocol.shift:g}"
    channels = "all" if protocol.guidance_channels is None else f"the first {protocol.guidance_channels}"
    channels = "textures" if protocol.scale_semantic == 1 else channels
    times = f"{protocol.interval_start:g} to {protocol.interval_end:g}"
    cells = (f"`{name}`", protocol.class_labels, f"{protocol.solver}, {steps}{shift}", protocol.time_grid, channels)
    return f"| {' | '.join((*cells, times, protocol.to_uint8, protocol.source))} |"


if __name__ == "__main__":
    print(*rows(), "", *memories(), "", *protocol_rows(), "", *finetune_rows(), finetune_memory(), sep="\n")

"""What a preset takes on ImageNet, stage by stage, by number of H100s: arithmetic and assumptions, no measurement.

Operations are counted from the networks of the presets (`sfd_cli.training.costs`), number formats, compiling and
threads are what the settings say, and everything else stands in `Assumed`, which `estimate.py` prints as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

from sfd_cli.config import DiT, Settings, load_settings
from sfd_cli.data.validation_split import validation_split
from sfd_cli.evaluation.held_out import scored
from sfd_cli.networks.compilation import choose_compile
from sfd_cli.networks.precision import choose_frozen_precision, choose_precision
from sfd_cli.pipeline.speed import settled
from sfd_cli.tables import STAGES
from sfd_cli.training.costs import Costs, meta_transformer
from sfd_cli.training.throughput import PEAKS

REPOSITORY = Path(__file__).parents[1]
PRESETS = {"XL": "imagenet256-xl", "1.0 B": "imagenet256-1p0b"}
IMAGES, CLASSES = 1_281_167, 1000
GPUS = (1, 8, 64)
BF16, FP32 = (1e12 * peak for peak in PEAKS["NVIDIA H100"])
H100 = torch.device("cuda")
"""Which is asked for nothing but what the settings mean there."""
PEAK = {"bf16": BF16, "TF32": BF16 / 2, "fp32": FP32}


def assumed(value: float, reason: str) -> Any:
    """A number that nobody measured here."""
    return field(default=value, metadata={"reason": reason})


@dataclass(frozen=True)
class Assumed:
    """What nobody measured here, each with its reason."""

    compiled: float = assumed(
        0.40, "assumed: share of the bf16 peak of a transformer's training step, compiled; the target is 0.5"
    )
    eager: float = assumed(0.20, "the same in eager mode: LightningDiT's README, 64 epochs in 10 hours on eight H800")
    tf32: float = assumed(0.35, "assumed: share of the TF32 peak of transformers")
    fp32: float = assumed(0.60, "assumed: share of the float32 peak, without tensor cores, of transformers")
    convolutions: float = assumed(
        0.20,
        "share of the TF32 peak of the texture VAE, whose norms and activations of 128 x 256 x 256 are bound by memory",
    )
    weight_traffic: float = assumed(
        12, "bytes of memory traffic a parameter and step, on every GPU: casts to bf16 and back (counted by hand)"
    )
    shared_traffic: float = assumed(
        44, "the same, shared by the GPUs: AdamW 28, average 12, norm 4; then each sends its part of the weights"
    )
    hbm: float = assumed(2.8e12, "bytes a second of an H100's memory, of 3.35e12 on the data sheet")
    block_eager: float = assumed(
        1e-3, "assumed: seconds by which a step cannot go below for each block, launches in eager mode"
    )
    block_compiled: float = assumed(0.35e-3, "assumed: the same, compiled")
    link: float = assumed(
        300e9, "bytes a second in each direction between the GPUs of a machine (NVLink: 450e9 on the data sheet)"
    )
    network: float = assumed(
        320e9, "the same between machines of eight GPUs: eight cards of 400 Gbit/s (50e9), 40e9 of each"
    )
    cores: float = assumed(16, "assumed: CPU cores beside each GPU")
    decodes: float = assumed(
        105,
        "JPEGs of ImageNet decoded a second and thread: 150 alone, 0.7 of it in threads of one process",
    )
    png_writes: float = assumed(60, "256 px PNGs written a second and core")
    digests: float = assumed(0.9e9, "bytes a second and core of BLAKE2b, by which a finished artifact is read")
    disk: float = assumed(1e9, "assumed: bytes a second of a machine's disk, or of its part of a shared one")
    metrics: float = assumed(60, "assumed: seconds of KID, precision and recall on the cores beside a GPU")
    jpeg_bytes: float = assumed(110e3, "of an image of ImageNet: 141 GB in all")
    inception: float = assumed(11.4e9, "operations of Inception-v3 on an image of 299 px (counted)")
    reference: float = assumed(10_000, "images of ADM's reference batch")
    gpus_a_machine: float = assumed(8, "GPUs that share a disk and a link")


ASSUMED = Assumed()


@dataclass(frozen=True)
class Stage:
    """Seconds that each resource takes on one GPU, and what does not shrink with their number.

    Attributes:
        name: the command.
        operations: counted, by the number format that they run in.
        gpu: seconds of one GPU.
        cores: seconds of the threads of one process.
        disk: seconds of one machine's disk.
        step: of a training, seconds of a step by number of GPUs, and the steps.
        after: seconds that follow, one part after the other, such as the metrics.
    """

    name: str
    operations: dict[str, float]
    gpu: float = 0.0
    cores: float = 0.0
    disk: float = 0.0
    step: dict[int, float] | None = None
    steps: int = 0
    after: float = 0.0

    def parts(self, gpus: int) -> dict[str, float]:
        """Seconds of every resource, which work at the same time, on so many GPUs."""
        sharing = gpus if STAGES[self.name].shares else 1
        machines = max(sharing / ASSUMED.gpus_a_machine, 1)
        gpu = self.gpu / sharing if self.step is None else self.steps * self.step[gpus]
        return {"GPU": gpu, "CPU": self.cores / sharing, "disk": self.disk / machines}

    def hours(self, gpus: int) -> float:
        """Of the slowest resource, and what follows."""
        return (max(self.parts(gpus).values()) + self.after) / 3600

    def pace(self, gpus: int) -> str:
        """The resource that sets the pace."""
        parts = self.parts(gpus)
        return max(parts, key=lambda name: parts[name])


class Estimate:
    """The stages of a preset on all images of ImageNet."""

    def __init__(self, preset: str) -> None:
        self.settings: Settings = load_settings(REPOSITORY / "sfd_cli" / "presets" / f"{preset}.yaml")
        self.costs = Costs(self.settings, IMAGES, CLASSES, prepared=0)
        self.counted = self.costs.stages()
        self.encoder_flops = self.costs.encoder_flops(self.settings.encoder)
        self.flips = self.settings.images.flips
        self.held = self.settings.features.max_images or IMAGES
        workers = self.settings.runtime.workers
        self.threads = min(workers if isinstance(workers, int) else ASSUMED.cores, ASSUMED.cores)

    @cached_property
    def stages(self) -> list[Stage]:
        """From images to scores."""
        guide = self.settings.guide
        assert guide is not None
        transformers = [self.training("train", self.settings.dit), self.training("train-guide", guide)]
        return [*self._compressors(), self._encoding(), *transformers, self._sampling(), self._scoring()]

    def _compressors(self) -> list[Stage]:
        settings, costs = self.settings, self.costs
        jpegs = ASSUMED.jpeg_bytes / ASSUMED.disk
        tokens = self.held * self.flips * self.encoder_flops
        kept = self.counted["extract-features"].bytes / ASSUMED.disk
        seen = len(scored(validation_split(IMAGES, settings.texture_vae.holdout)[1]))
        codec = seen * costs.texture_flops
        return [
            Stage("prepare-data", {}, 0, self._decoding(IMAGES), IMAGES * jpegs),
            Stage(
                "extract-features",
                {self._frozen("features"): tokens},
                _seconds(tokens, self._frozen("features")),
                self._decoding(self.held),
                self.held * jpegs + kept,
            ),
            self._semantic_vae(),
            Stage("train-texture-vae", {"TF32": codec}, _convolved(codec), self._decoding(seen), seen * jpegs),
        ]

    def _semantic_vae(self) -> Stage:
        section = self.settings.semvae
        images = section.steps * section.batch_size
        work = 3 * images * (self.costs.semantic_encoder_flops + self.costs.semantic_decoder_flops)
        return self._steps("train-semvae", section, work, 2 * section.depth, self.semantic_numbers)

    def training(self, name: str, section: DiT) -> Stage:
        """Training a transformer."""
        work = self.counted[name].operations
        return self._steps(name, section, work, section.depth, self.numbers(section), name)

    def _steps(self, name: str, section: Any, work: float, blocks: int, numbers: int, latents: str = "") -> Stage:
        """A training: arithmetic, the weights' own traffic, and averaging behind the backward pass."""
        form = choose_precision(section.precision, H100)
        compiled = choose_compile(section.compile, H100, section.steps)
        least = blocks * (ASSUMED.block_compiled if compiled else ASSUMED.block_eager)
        step = {}
        for gpus in GPUS:
            passes = max(_seconds(work / section.steps / gpus, form, compiled), least)
            averaged = averaging(numbers, gpus)[1]
            traffic = numbers * (ASSUMED.weight_traffic + ASSUMED.shared_traffic / gpus) / ASSUMED.hbm
            # Weights are sent when the step is done, half as many bytes as gradients, which hide behind the passes.
            step[gpus] = passes / 3 + max(passes * 2 / 3, averaged) + traffic + averaged / 2
        read = section.steps * section.batch_size * self.latent_bytes / self.flips if latents else 0
        return Stage(name, {form: work}, 0, 0, read / ASSUMED.disk, step, section.steps)

    def _encoding(self) -> Stage:
        costs, views = self.costs, IMAGES * self.flips
        tokens = self.flips * (IMAGES - self.held) * self.encoder_flops
        products, convolutions = tokens + views * costs.semantic_encoder_flops, views * costs.texture_encoder_flops
        written = IMAGES * self.latent_bytes
        form = self._frozen("latents")
        gpu = _seconds(products, form) + _convolved(convolutions)
        disk = (IMAGES * ASSUMED.jpeg_bytes + written) / ASSUMED.disk
        after = max(written / ASSUMED.digests / ASSUMED.cores, written / ASSUMED.disk)
        work = _together({form: products}, {"TF32": convolutions})
        return Stage("encode-latents", work, gpu, self._decoding(IMAGES), disk, after=after)

    def _sampling(self) -> Stage:
        settings, sample = self.settings, settled(self.settings.sample, H100, self.settings.sample.num_images)
        decoding = sample.num_images * self.costs.texture_decoder_flops
        velocities = self.counted["sample"].operations - decoding
        form = {"bf16": "bf16", "fp32": "TF32", "ieee": "fp32"}[sample.precision]
        gpu = _seconds(velocities, form, sample.compile is True) + _convolved(decoding)
        size = sample.num_images * 3 * settings.images.size**2
        work = _together({form: velocities}, {"TF32": decoding})
        return Stage(
            "sample", work, gpu, sample.num_images / (ASSUMED.png_writes * self.threads), 1.56 * size / ASSUMED.disk
        )

    def _scoring(self) -> Stage:
        seen = self.settings.sample.num_images + ASSUMED.reference
        encoder, inception = seen * self.encoder_flops, seen * ASSUMED.inception
        gpu = _seconds(encoder, "fp32") + _convolved(inception)
        return Stage("fid", {"fp32": encoder, "TF32": inception}, gpu, self._decoding(seen), 0, after=ASSUMED.metrics)

    def _frozen(self, section: str) -> str:
        """The number format of frozen transformers in a stage."""
        chosen = choose_frozen_precision(getattr(self.settings, section).precision, H100)
        return {"tf32": "TF32"}.get(chosen, chosen)

    def _decoding(self, images: float) -> float:
        return images / (ASSUMED.decodes * self.threads)

    @property
    def latent_bytes(self) -> float:
        """Of an image, all views, float16."""
        return self.counted["encode-latents"].bytes / IMAGES

    @cached_property
    def semantic_numbers(self) -> int:
        """Parameters of the Semantic VAE."""
        assert self.costs.semantic is not None
        return sum(value.numel() for value in self.costs.semantic.parameters())

    def numbers(self, section: DiT) -> int:
        """Parameters that are trained, the REPA projector among them."""
        return sum(value.numel() for value in meta_transformer(self.costs.transformer(section)).parameters())


@cache
def estimate_of(preset: str) -> Estimate:
    """The one of a preset; counting takes seconds."""
    return Estimate(preset)


def averaging(numbers: int, gpus: int) -> tuple[float, float]:
    """Bytes that a GPU sends in a step to average float32 gradients in a ring, and seconds of it."""
    sent = 2 * (gpus - 1) / gpus * 4 * numbers
    return sent, sent / (ASSUMED.link if gpus <= ASSUMED.gpus_a_machine else min(ASSUMED.link, ASSUMED.network))


def _together(*works: dict[str, float]) -> dict[str, float]:
    """Operations by number format, of parts of a stage."""
    return {form: sum(work.get(form, 0) for work in works) for form in {**works[0], **works[1]}}


def _seconds(operations: float, form: str, compiled: bool = False) -> float:
    """Of transformers."""
    shares = {
        "fp32": ASSUMED.fp32,
        "TF32": ASSUMED.tf32,
        "bf16": ASSUMED.compiled if compiled else ASSUMED.eager,
    }
    return operations / (PEAK[form] * shares[form])


def _convolved(operations: float) -> float:
    """Of convolutions, which cuDNN computes in TF32."""
    return operations / (PEAK["TF32"] * ASSUMED.convolutions)

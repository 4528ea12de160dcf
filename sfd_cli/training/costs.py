"""What a pipeline takes before any of it is run: bytes, operations and memory, from settings and number of images.

Networks stand on the meta device: nothing is allocated. A multiplication and an addition are two operations, a backward
pass takes twice the operations of the forward pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sfd_cli.config import DiT, Encoder, Settings
from sfd_cli.diffusion.latents import LatentSpace
from sfd_cli.networks.adapters import adapter_numbers
from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig
from sfd_cli.networks.semantic_pca import SemanticPCA, SemanticPCAConfig
from sfd_cli.networks.semantic_vae import SemanticVAE, SemanticVAEConfig
from sfd_cli.networks.texture_pca import TexturePCA, TexturePCAConfig
from sfd_cli.networks.texture_vae import TextureVAE, TextureVAEConfig
from sfd_cli.networks.visual_encoder import VisualEncoder
from sfd_cli.tables import SOLVERS
from sfd_cli.training.adapter import SHARE_OF_FLOPS
from sfd_cli.training.optimizers import is_inner
from sfd_cli.training.texture_vae_task import network_config as texture_config
from sfd_cli.training.throughput import training_flops
from sfd_cli.training.transformer import network_config

FLOAT, HALF = 4, 2
# Assumed: the size of a sample's PNG in parts of its pixels, as photographs at 256 px and the demo's samples have it;
# velocities per image of the adaptive solver at its default tolerance.
PNG_SHARE, ADAPTIVE_CALLS = 0.56, 60


@dataclass(frozen=True)
class Cost:
    """What one stage takes.

    Attributes:
        images: that go through it.
        bytes: of the artifact that it leaves.
        operations: additions and multiplications.
        section: how it trains a transformer; None where it does not.
        checkpoint: bytes of what training resumes from, beside the artifact; while it trains there are two of them.
    """

    images: int
    bytes: float
    operations: float
    section: DiT | None = None
    checkpoint: float = 0.0


class Costs:
    """The stages of a project.

    Args:
        settings: of the project.
        images: number of images in the manifest.
        classes: number of their classes.
        prepared: bytes of the images' own folder.
    """

    def __init__(self, settings: Settings, images: int, classes: int, prepared: int) -> None:
        self.settings, self.images, self.classes, self.prepared = settings, images, classes, prepared

    def stages(self) -> dict[str, Cost]:
        """Stage -> what it takes, in the order of the pipeline; those with nothing to do are left out."""
        settings, views = self.settings, self.images * self.settings.images.flips
        sample, found = settings.sample, {"prepare-data": Cost(self.images, self.prepared, 0)}
        if self.encoder is not None:
            held = min(settings.features.max_images or self.images, self.images)
            work = held * settings.images.flips * self.encoder_flops(settings.encoder)
            found["extract-features"] = Cost(held, self._tokens(held), work)
        if self.semantic is not None:
            trained = 3 * (self.semantic_encoder_flops + self.semantic_decoder_flops)
            found["train-semvae"] = self._compressor(self.semantic, settings.semvae, trained)
        found["train-texture-vae"] = self._compressor(self.texture, settings.texture_vae, 3 * self.texture_flops)
        found["encode-latents"] = Cost(self.images, self._latents(), views * self._encoding())
        transformers = {"train": settings.dit, "train-guide": settings.guide}
        if settings.schedule.learn:
            transformers = {"learn-schedule": settings.schedule.probe, **transformers}
        for stage, section in transformers.items():
            if section is not None:
                found[stage] = self._training(section)
        found["sample"] = self._sampling()
        seen = sample.num_images + self.images
        found["fid"] = Cost(seen, 0, seen * self.encoder_flops(settings.fid.encoder))
        return found

    def transformer(self, section: DiT) -> LightningDiTConfig:
        """What `sfd train` builds of a section."""
        semantic = self.settings.semvae.channels if section.semantics and self.semantic is not None else 0
        space = LatentSpace(self.settings.texture_vae.latent_channels, semantic, self.settings.grid)
        return network_config(section, space, self.token_width, self.classes)

    @cached_property
    def encoder(self) -> VisualEncoder | None:
        """The visual encoder, where the latents need one."""
        encoder = self.settings.encoder
        return _encoder(encoder.name, encoder.image_size) if self.settings.needs_encoder else None

    @property
    def token_width(self) -> int:
        """Width of its patch tokens; 0 without one."""
        return self.encoder.feature_width if self.encoder is not None else 0

    @cached_property
    def semantic(self) -> nn.Module | None:
        """The semantic compressor."""
        section, width = self.settings.semvae, self.token_width
        with torch.device("meta"):
            if section.compressor == "none":
                return None
            if section.compressor == "pca":
                return SemanticPCA(SemanticPCAConfig(width, section.channels))
            return SemanticVAE(SemanticVAEConfig(width, section.channels, section.width, section.depth, section.heads))

    @cached_property
    def texture(self) -> nn.Module:
        """The texture compressor."""
        section = self.settings.texture_vae
        with torch.device("meta"):
            if section.compressor == "pca":
                decoder = tuple(section.decoder_channels)
                return TexturePCA(
                    TexturePCAConfig(
                        section.patch_size, section.channels, decoder_channels=decoder, norm_groups=section.norm_groups
                    )
                )
            return _texture_vae(texture_config(section))

    def encoder_flops(self, encoder: Encoder) -> float:
        """Of a visual encoder on one image, forward."""
        return encoder.tiles**2 * _encoder_flops(encoder.name, encoder.image_size)

    @cached_property
    def semantic_encoder_flops(self) -> float:
        """Of the semantic encoder on one image."""
        tokens = self.settings.grid**2
        return self._of_semantic(lambda net: net.encode(torch.empty(1, tokens, self.token_width)))

    @cached_property
    def semantic_decoder_flops(self) -> float:
        """Of the semantic decoder on one image."""
        tokens = self.settings.grid**2
        return self._of_semantic(lambda net: net.decode(torch.empty(1, tokens, self.settings.semvae.channels)))

    @cached_property
    def texture_flops(self) -> float:
        """Of the texture codec on one image, there and back."""
        return self.texture_encoder_flops + self.texture_decoder_flops

    @cached_property
    def texture_encoder_flops(self) -> float:
        """Of the texture encoder on one image."""
        side = self.settings.images.size
        return _forward(self.texture, lambda net: net.encode(torch.empty(1, 3, side, side)))

    @cached_property
    def texture_decoder_flops(self) -> float:
        """Of the texture decoder on one image."""
        channels, grid = self.settings.texture_vae.latent_channels, self.settings.grid
        return _forward(self.texture, lambda net: net.decode(torch.empty(1, channels, grid, grid)))

    def _of_semantic(self, call: Callable[[Any], object]) -> float:
        return 0.0 if self.semantic is None else _forward(self.semantic, call)

    def _tokens(self, images: int) -> float:
        return images * self.settings.images.flips * self.settings.grid**2 * self.token_width * HALF

    def _latents(self) -> float:
        settings = self.settings
        channels = settings.texture_vae.latent_channels + (settings.semvae.channels if self.semantic is not None else 0)
        features = self._tokens(self.images) if settings.latents.store_features else 0
        return self.images * settings.images.flips * channels * settings.grid**2 * HALF + features

    def _encoding(self) -> float:
        """Operations on one view of an image; of the visual encoder for those alone whose tokens are not kept."""
        again = 0.0
        if self.encoder is not None and (kept := self.settings.features.max_images) is not None:
            again = max(self.images - kept, 0) / self.images * self.encoder_flops(self.settings.encoder)
        return again + self.semantic_encoder_flops + self.texture_encoder_flops

    def _compressor(self, network: nn.Module, section: Any, per_image: float) -> Cost:
        trains = section.weights is None and (section.compressor == "vae" or getattr(section, "decoder_channels", []))
        images = section.steps * section.batch_size if trains else self.images
        return Cost(images, FLOAT * _numbers(network), images * per_image if trains else 0)

    def _training(self, section: DiT) -> Cost:
        """Weights, their average and its milestones; a checkpoint has the first two beside the optimiser's moments."""
        config, images = self.transformer(section), section.steps * section.batch_size
        network = meta_transformer(config)
        numbers, trained, thin = _counts(network, section)
        matrices = sum(weight.numel() for name, weight in network.named_parameters() if is_inner(name, weight))
        # AdamW keeps two numbers of a weight, Muon one.
        moments = 2 * trained - (section.optimizer == "muon") * (thin if section.adapter else matrices)
        decoded = self.semantic_decoder_flops if section.repa == "decoded" else 0.0
        share = SHARE_OF_FLOPS if section.adapter else 1
        work = images * (3 * share * _velocity(config, bool(config.repa_depth)) + decoded)
        kept = section.steps // section.keep_every if section.keep_every else 0
        # Of an adapter the merged average and the adapter itself are left, and milestones are the adapter alone.
        artifact = numbers + trained * (1 + kept)
        return Cost(images, FLOAT * artifact, work, section, FLOAT * (2 * trained + moments))

    def _sampling(self) -> Cost:
        settings, sample = self.settings, self.settings.sample
        calls = ADAPTIVE_CALLS if SOLVERS[sample.solver].is_adaptive else sample.steps
        velocity = _velocity(self.transformer(settings.dit), False)
        if sample.guidance == "cfg":
            velocity *= 2
        elif sample.guidance == "autoguidance" and settings.guide is not None:
            velocity += _velocity(self.transformer(settings.guide), False)
        pixels = 3 * settings.images.size**2
        semantics = FLOAT * self.transformer(settings.dit).semantic_channels * settings.grid**2
        work = sample.num_images * (calls * velocity + self.texture_decoder_flops)
        return Cost(sample.num_images, sample.num_images * (pixels * (1 + PNG_SHARE) + semantics), work)


@cache
def meta_transformer(config: LightningDiTConfig) -> LightningDiT:
    """The network without memory for its weights, to count on and not to change."""
    with torch.device("meta"):
        return LightningDiT(config)


@cache
def _texture_vae(config: TextureVAEConfig) -> TextureVAE:
    with torch.device("meta"):
        return TextureVAE(config)


@cache
def _encoder(name: str, side: int) -> VisualEncoder:
    with torch.device("meta"):
        return VisualEncoder(name, side)


@cache
def _encoder_flops(name: str, side: int) -> float:
    return _forward(_encoder(name, side), lambda net: net.encode(torch.empty(1, 3, side, side)))


def step_memory(config: LightningDiTConfig, section: DiT, images: int, bf16: bool) -> float:
    """Bytes of a training step on one device: weights, gradients, moments, the average, and what is kept for backward.

    Of an adapter's training gradients, moments and average are those of the adapter alone.

    Args:
        config: of the network.
        section: how it is trained.
        images: of one micro-batch.
        bf16: whether activations are half as large.
    """
    numbers, trained, thin = _counts(meta_transformer(config), section)
    short, long = (_kept(dataclasses.replace(config, depth=depth, repa_depth=0)) for depth in (1, 2))
    block, rest = long - short, 2 * short - long
    kept = rest + config.depth * block
    if section.checkpoint_activations:
        tokens = (config.grid // config.patch_size) ** 2
        kept = rest + block + config.depth * tokens * config.width * FLOAT
    return FLOAT * (numbers + thin + 4 * trained) + images * kept * (0.5 if bf16 else 1)


def _counts(network: LightningDiT, section: DiT) -> tuple[int, int, int]:
    """Numbers of a network, those that are trained, and those of an adapter's matrices, which it has beside its own."""
    if section.adapter is None:
        return _numbers(network), _numbers(network), 0
    thin = adapter_numbers(network, section.adapter.rank)
    return _numbers(network), network.class_embedding.weight.numel() + thin, thin


def _kept(config: LightningDiTConfig) -> float:
    """Bytes that one image's forward pass keeps for the backward pass, in float32, weights not counted."""
    kept: dict[int, int] = {}
    with torch.device("meta"):
        network = LightningDiT(config)
        weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                kept[storage._cdata] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            held = _call(network, config, False)
    del held  # until here, so that no storage's place is given to another
    return float(sum(kept.values()))


@cache
def _velocity(config: LightningDiTConfig, project: bool) -> float:
    return _forward(meta_transformer(config), lambda net: _call(net, config, project))


def _call(network: nn.Module, config: LightningDiTConfig, project: bool) -> object:
    x = torch.empty(1, config.in_channels, config.grid, config.grid)
    return network(x, torch.empty(1), torch.empty(1), torch.empty(1, dtype=torch.int64), project)


def _forward(network: nn.Module, call: Callable[[Any], object]) -> float:
    """Operations of a forward pass."""
    return training_flops(call, lambda: network) / 3


def _numbers(network: nn.Module) -> int:
    """Numbers that a checkpoint of the network has."""
    return sum(value.numel() for value in network.state_dict().values())

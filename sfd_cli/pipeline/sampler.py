"""From noise and labels to images: the trained models put together as the section `sample` says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sfd_cli.config import Sample, Settings
from sfd_cli.diffusion.guidance import AutoGuidance, ClassifierFreeGuidance, GuidanceScale, VelocityField
from sfd_cli.diffusion.schedule import schedule_of
from sfd_cli.diffusion.solver import OnPoint, integrate
from sfd_cli.errors import StageFailure, UserError
from sfd_cli.networks.lightning_dit import LightningDiT
from sfd_cli.networks.precision import Precision, autocast
from sfd_cli.networks.texture_vae import TextureVAE, to_pixels
from sfd_cli.pipeline.inputs import SampleInputs
from sfd_cli.weights.models import open_dit, open_texture_vae

# Images per call of the VAE decoder, whose activations are far larger than the transformer's.
DECODED_AT_ONCE = 16


@dataclass(frozen=True)
class Flow:
    """The transformers of a sampling run and how to integrate them, on one device.

    Attributes:
        dit: the diffusion transformer.
        guide: the weaker model, for AutoGuidance.
        sample: the settings.
        about: what the transformer's folder says beside its architecture.
        name: where the transformer is, for messages.
    """

    dit: LightningDiT
    guide: LightningDiT | None
    sample: Sample
    about: dict[str, Any]
    name: str

    @classmethod
    def load(cls, settings: Settings, device: torch.device) -> Self:
        """Load the transformers of `settings.paths`.

        Raises:
            UserError: one is missing or damaged, or they and the settings do not fit together.
        """
        paths = settings.paths
        opened = open_dit(settings)
        dit, about = opened.load(), opened.facts
        guide = None
        if settings.sample.guidance == "autoguidance":
            weaker = open_dit(settings, "guide")
            guide, of_guide = weaker.load(), weaker.facts
            both = [part["statistics"] for part in (about, of_guide) if part.get("statistics") is not None]
            if len(both) == 2 and both[0] != both[1]:
                raise UserError(f"{paths.guide} was trained on other latents than {paths.dit}; train it again")
            guide = guide.to(device)
        flow = cls(dit.to(device), guide, settings.sample, about, str(paths.dit))
        flow.require_fit(str(paths.guide))
        if settings.sample.compile:
            for network in (dit, guide):
                if network is not None:
                    network.compile(dynamic=False)  # batches have one shape, or two with classifier-free guidance
        return flow

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w) of a composite latent."""
        config = self.dit.config
        return config.in_channels, config.grid, config.grid

    @property
    def device(self) -> torch.device:
        """Where the transformers are."""
        return next(self.dit.parameters()).device

    @property
    def class_names(self) -> list[str]:
        """Of every class, in order; numbers where the transformer's folder has no names."""
        return [str(name) for name in self.about.get("classes", range(self.dit.config.num_classes))]

    def latents(self, inputs: SampleInputs, indices: Sequence[int], on_point: OnPoint | None = None) -> Tensor:
        """Normalised composite latents (n, C, h, w) of images `indices`.

        Raises:
            StageFailure: one is not finite.
        """
        noise = inputs.noise_of(indices, self.shape).to(self.device)
        labels = inputs.labels_of(indices, self.dit.config.num_classes).to(self.device)
        latents = sample_latents(self.dit, self.guide, self.sample, noise, labels, on_point)
        if not bool(latents.isfinite().all()):
            raise StageFailure(
                f"the latents of images {indices[0]} to {indices[-1]} are not finite; "
                "sample with more steps or a smaller scale, or look at the training losses"
            )
        return latents

    def require_fit(self, guide: str) -> None:
        """Raise UserError where transformer, guide (named so) and settings do not belong together."""
        sample, config = self.sample, self.dit.config
        if sample.delta_t and (config.semantic_channels == 0 or config.time_embedding == "single"):
            lacks = "has no semantic channels" if config.semantic_channels == 0 else "has one time for both streams"
            raise UserError(f"sample.delta_t: {self.name} {lacks}, so there is no offset to sample with; use 0")
        if self.guide is None:
            return
        for name in ("grid", "in_channels", "semantic_channels", "num_classes"):
            ours, theirs = getattr(config, name), getattr(self.guide.config, name)
            if ours != theirs:
                raise UserError(
                    f"{guide} cannot guide {self.name}: its {name} is {theirs} instead of {ours}; "
                    "train both on the same latents"
                )
        if sample.delta_t and self.guide.config.time_embedding == "single":
            raise UserError(f"{guide} has one time for both streams, so it can guide with delta_t 0 only")


@dataclass(frozen=True)
class Sampler:
    """All models of one sampling run, on one device.

    Attributes:
        flow: from noise to composite latents.
        texture_vae: decodes the texture latent.
        statistics: per-channel mean and std of the training set, (C, 1, 1) each, textures first.
    """

    flow: Flow
    texture_vae: TextureVAE
    statistics: tuple[Tensor, Tensor]

    def __post_init__(self) -> None:
        config, decoded = self.flow.dit.config, self.texture_vae.latent_channels
        textures = config.in_channels - config.semantic_channels
        if textures != decoded:
            raise UserError(
                f"{self.flow.name} makes {textures} texture channels, but the texture VAE decodes {decoded};"
                " use the one that its latents were encoded with"
            )

    @classmethod
    def load(cls, settings: Settings, device: torch.device) -> Self:
        """Load the models of `settings.paths`.

        Raises:
            UserError: a model is missing or damaged, or models and settings do not fit together.
        """
        paths, flow = settings.paths, Flow.load(settings, device)
        config = flow.dit.config
        opened = open_texture_vae(settings, config.in_channels - config.semantic_channels)
        texture_vae = opened.load()
        if flow.about.get("texture_vae") not in (None, opened.fingerprint):
            raise UserError(
                f"{paths.dit} was trained on latents of another texture VAE than {paths.texture_vae};"
                " run `sfd encode-latents` and `sfd train` again"
            )
        mean, std = read_statistics(flow.about, flow.dit, flow.name)
        return cls(flow, texture_vae.to(device), (mean.to(device), std.to(device)))

    @property
    def class_names(self) -> list[str]:
        """As the flow's."""
        return self.flow.class_names

    def images(self, inputs: SampleInputs, indices: Sequence[int]) -> np.ndarray:
        """Images `indices` of this run, uint8 (n, H, W, 3).

        Raises:
            StageFailure: a latent is not finite.
        """
        images = decode_textures(self.texture_vae, self.flow.latents(inputs, indices), self.statistics)
        return images.permute(0, 2, 3, 1).contiguous().cpu().numpy()


@torch.inference_mode()
def sample_latents(
    dit: LightningDiT,
    guide: LightningDiT | None,
    sample: Sample,
    noise: Tensor,
    labels: Tensor,
    on_point: OnPoint | None = None,
) -> Tensor:
    """Integrate the guided flow from `noise` (B, C, h, w) for `labels` (B,) to normalised composite latents.

    All on the device of the models. `guide` is needed for AutoGuidance alone; `on_point` is told the solution at
    T = 0 and after every step.
    """
    return integrate(
        _velocity_field(dit, guide, sample),
        noise,
        labels,
        schedule_of(sample),
        dit.config.space,
        solver=sample.solver,
        steps=sample.steps,
        grid=sample.time_grid,
        shift=sample.shift,
        rtol=sample.rtol,
        atol=sample.atol,
        on_point=on_point,
    )


def guidance_scale(sample: Sample) -> GuidanceScale:
    """The scale of each stream: its own where it is set, else the common one."""
    return GuidanceScale(
        sample.scale if sample.scale_texture is None else sample.scale_texture,
        sample.scale if sample.scale_semantic is None else sample.scale_semantic,
        (sample.interval_start, sample.interval_end),
    )


@torch.inference_mode()
def decode_textures(texture_vae: TextureVAE, latents: Tensor, statistics: tuple[Tensor, Tensor]) -> Tensor:
    """Images (B, 3, H, W) uint8 of normalised composite latents (B, C, h, w); the semantic channels are dropped.

    `statistics`: per-channel mean and std, (C, 1, 1) each.
    """
    mean, std = statistics
    textures = (latents * std + mean)[:, : texture_vae.latent_channels]
    parts = [texture_vae.decode(part) for part in textures.split(DECODED_AT_ONCE)]
    return to_pixels(torch.cat(parts))


def read_statistics(extra: dict[str, Any], dit: LightningDiT, source: str) -> tuple[Tensor, Tensor]:
    """Per-channel mean and std, (C, 1, 1) float32 each, from the extra keys of a transformer's folder.

    Raises:
        UserError: they are not there, or not one per channel.
    """
    found, channels = extra.get("statistics") or {}, dit.config.in_channels
    try:
        mean, std = (torch.tensor(found[key], dtype=torch.float32).reshape(channels, 1, 1) for key in ("mean", "std"))
    except (KeyError, TypeError, ValueError, RuntimeError):
        others = f", only for {len(found['mean'])}" if found.get("mean") else ""
        raise UserError(
            f"{source} has no latent statistics for {channels} channels{others}, and its samples cannot be decoded"
            " without; give those of its training set (--foreign-texture-statistics and --foreign-semantic-statistics,"
            " --texture-statistics and --semantic-statistics of `sfd weights import`, or the section `foreign`)"
        ) from None
    return mean, std


def _velocity_field(dit: LightningDiT, guide: LightningDiT | None, sample: Sample) -> VelocityField:
    velocity, space = _in_precision(dit, sample.precision), dit.config.space
    if sample.guidance == "cfg":
        return ClassifierFreeGuidance(velocity, dit.config.conditions, guidance_scale(sample), space)
    if sample.guidance == "autoguidance":
        if guide is None:
            raise ValueError("autoguidance needs a guide")
        weaker = _in_precision(guide, sample.precision)
        return AutoGuidance(velocity, weaker, guidance_scale(sample), space)
    return velocity


def _in_precision(network: LightningDiT, precision: Precision) -> VelocityField:
    """The network's velocity; guidance and the solver go on in the format of the latent."""

    def velocity(x: Tensor, t_texture: Tensor, t_semantic: Tensor, labels: Tensor) -> Tensor:
        with autocast(precision, x.device):
            return network(x, t_texture, t_semantic, labels).to(x.dtype)

    return velocity

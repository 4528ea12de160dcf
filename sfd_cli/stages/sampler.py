"""From noise and labels to images: the trained models put together as the section `sample` says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfd_cli.config import Sample, Settings
from sfd_cli.diffusion.guidance import AutoGuidance, ClassifierFreeGuidance, GuidanceScale, VelocityField
from sfd_cli.diffusion.schedule import AsynchronousSchedule
from sfd_cli.diffusion.solver import OnPoint, integrate
from sfd_cli.errors import StageFailure, UserError
from sfd_cli.networks.lightning_dit import LightningDiT
from sfd_cli.networks.texture_vae import TextureVAE, to_pixels
from sfd_cli.stages.upstream import model_fingerprint
from sfd_cli.weights.sources import open_dit, open_texture_vae

# Images per call of the VAE decoder, whose activations are far larger than the transformer's.
DECODED_AT_ONCE = 16


@dataclass(frozen=True)
class Sampler:
    """The models of one sampling run, on one device.

    Attributes:
        dit: the diffusion transformer.
        guide: the weaker model, for AutoGuidance.
        texture_vae: decodes the texture latent.
        statistics: per-channel mean and std of the training set, (C, 1, 1) each, textures first.
        class_names: of every class, in order.
        training_delta_t: the offset the transformer was trained with, where its folder says.
        sample: the settings.
    """

    dit: LightningDiT
    guide: LightningDiT | None
    texture_vae: TextureVAE
    statistics: tuple[Tensor, Tensor]
    class_names: list[str]
    training_delta_t: float | None
    sample: Sample

    @classmethod
    def load(cls, settings: Settings, device: torch.device) -> Sampler:
        """Load the models of `settings.paths`.

        Raises:
            UserError: a model is missing or damaged, or models and settings do not fit together.
        """
        sample, paths = settings.sample, settings.paths
        dit, extra = open_dit(settings)
        guide = None
        if sample.guidance == "autoguidance":
            guide, of_guide = open_dit(settings, "guide")
            if of_guide.get("statistics", extra.get("statistics")) != extra.get("statistics"):
                raise UserError(f"{paths.guide} was trained on other latents than {paths.dit}; train it again")
        made_for = extra.get("texture_vae")
        if made_for not in (None, model_fingerprint(paths.texture_vae, "sfd train-texture-vae")):
            raise UserError(
                f"{paths.dit} was trained on latents of another texture VAE than {paths.texture_vae};"
                " run `sfd encode-latents` and `sfd train` again"
            )
        texture_vae = open_texture_vae(settings)
        mean, std = read_statistics(extra, dit, str(paths.dit))
        _require_fit(settings, dit, guide, texture_vae)
        return cls(
            dit.to(device),
            guide.to(device) if guide else None,
            texture_vae.to(device),
            (mean.to(device), std.to(device)),
            [str(name) for name in extra.get("classes", range(dit.config.num_classes))],
            extra.get("delta_t"),
            sample,
        )

    @property
    def classes(self) -> Sequence[int]:
        """Class indices to sample, which images take in turn."""
        return range(self.dit.config.num_classes) if self.sample.classes is None else self.sample.classes

    def images(self, indices: Sequence[int]) -> np.ndarray:
        """Images `indices` of this run, uint8 (n, H, W, 3).

        Raises:
            StageFailure: a latent is not finite.
        """
        config, device = self.dit.config, self.statistics[0].device
        noise = initial_noise(self.sample.seed, indices, (config.in_channels, config.grid, config.grid))
        labels = balanced_labels(indices, self.classes)
        latents = sample_latents(self.dit, self.guide, self.sample, noise.to(device), labels.to(device))
        if not bool(latents.isfinite().all()):
            raise StageFailure(
                f"the latents of images {indices[0]} to {indices[-1]} are not finite; "
                "sample with more --steps or a smaller --scale, or look at the training losses"
            )
        images = decode_textures(self.texture_vae, latents, self.statistics)
        return images.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def initial_noise(seed: int, indices: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal noise (n, *shape) float32 on the CPU; each image's depends on `seed` and its index alone."""

    def one(index: int) -> Tensor:
        state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)
        return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(int(state[0])))

    return torch.stack([one(index) for index in indices])


def balanced_labels(indices: Sequence[int], classes: Sequence[int]) -> Tensor:
    """Labels (n,) int64 that go through `classes` in turn, so that any run of images has all equally often."""
    return torch.tensor([classes[index % len(classes)] for index in indices])


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
        AsynchronousSchedule(sample.delta_t),
        dit.config.semantic_channels,
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
        raise UserError(
            f"{source} has no latent statistics for {channels} channels, and its samples cannot be decoded without: "
            "give those of its training set (--texture-statistics, --semantic-statistics)"
        ) from None
    return mean, std


def _velocity_field(dit: LightningDiT, guide: LightningDiT | None, sample: Sample) -> VelocityField:
    semantic_channels = dit.config.semantic_channels
    if sample.guidance == "cfg":
        return ClassifierFreeGuidance(dit, dit.config.num_classes, guidance_scale(sample), semantic_channels)
    if sample.guidance == "autoguidance":
        if guide is None:
            raise ValueError("autoguidance needs a guide")
        return AutoGuidance(dit, guide, guidance_scale(sample), semantic_channels)
    return dit


def _require_fit(settings: Settings, dit: LightningDiT, guide: LightningDiT | None, texture_vae: TextureVAE) -> None:
    sample, paths, config = settings.sample, settings.paths, dit.config
    textures = config.in_channels - config.semantic_channels
    if textures != texture_vae.latent_channels:
        raise UserError(
            f"{paths.dit} makes {textures} texture channels, but {paths.texture_vae} decodes "
            f"{texture_vae.latent_channels}; use the texture VAE that its latents were encoded with"
        )
    if sample.delta_t and (config.semantic_channels == 0 or config.time_embedding == "single"):
        lacks = "has no semantic channels" if config.semantic_channels == 0 else "has one time for both streams"
        raise UserError(f"sample.delta_t: {paths.dit} {lacks}, so there is no offset to sample with; use --delta-t 0")
    unknown = [index for index in sample.classes or [] if not 0 <= index < config.num_classes]
    if unknown or sample.classes == []:
        raise UserError(
            f"sample.classes: {unknown or 'an empty list'} will not do; "
            f"{paths.dit} knows classes 0 to {config.num_classes - 1}"
        )
    if guide is not None:
        for name in ("grid", "in_channels", "semantic_channels", "num_classes"):
            ours, theirs = getattr(config, name), getattr(guide.config, name)
            if ours != theirs:
                raise UserError(
                    f"{paths.guide} cannot guide {paths.dit}: its {name} is {theirs} instead of {ours}; "
                    "train both on the same latents"
                )
        if sample.delta_t and guide.config.time_embedding == "single":
            raise UserError(f"{paths.guide} has one time for both streams, so it can guide with --delta-t 0 only")

"""Semantic-First Diffusion as one object: load it, call it, save it, in the manner of diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sfd_cli.config import Settings, load_settings
from sfd_cli.errors import UserError
from sfd_cli.networks.lightning_dit import LightningDiT
from sfd_cli.networks.visual_encoder import VisualEncoder
from sfd_cli.pipeline import loading, saving
from sfd_cli.pipeline.arguments import NOT_OF_A_CALL, Images, Labels, as_noise, as_pixels, as_rows, as_sample
from sfd_cli.pipeline.image_encoder import encode_images
from sfd_cli.pipeline.inputs import SampleInputs
from sfd_cli.pipeline.sampler import Sampler
from sfd_cli.processes import choose_device
from sfd_cli.weights.models import SemanticCompressor, TextureCompressor

OUTPUTS = ("pil", "uint8", "latent")


@dataclass(frozen=True)
class PipelineOutput:
    """PIL images; or, by `output`, uint8 (n, 3, H, W) or normalised composite latents (n, C, h, w)."""

    images: list[Image.Image] | Tensor


class SemanticFirstPipeline:
    """A trained transformer with all it needs to make images, and, if wanted, to encode them.

    Args:
        sampler: transformer, guide and texture VAE on one device; its settings are the defaults of every call.
        semantic: the Semantic VAE or principal components, for `encode`.
        encoder: the visual encoder, for `encode`.

    Attributes:
        class_names: of every class, in order.
    """

    def __init__(
        self, sampler: Sampler, semantic: SemanticCompressor | None = None, encoder: VisualEncoder | None = None
    ) -> None:
        self._sampler = sampler
        self.semantic = semantic
        self.encoder = encoder
        self.class_names = list(sampler.conditions.names)

    @classmethod
    def from_settings(
        cls, settings: Settings | str | Path = "params.yaml", device: str = "auto", encoder: bool = False
    ) -> Self:
        """The models that settings name: folders made here, checkpoints of the reference code, registered weights.

        Args:
            settings: or the params.yaml that holds them; its section `sample` gives the defaults of calls.
            device: auto, cpu, cuda or cuda:N.
            encoder: also load what `encode` needs.

        Raises:
            UserError: a model is missing, or models and settings do not fit together.
        """
        if not isinstance(settings, Settings):
            settings = load_settings(Path(settings))
        return cls(*loading.from_settings(settings, choose_device(device), True, encoder))

    @classmethod
    def from_checkpoints(
        cls,
        dit: str | Path,
        texture_vae: str | Path | None = None,
        guide: str | Path | None = None,
        semvae: str | Path | None = None,
        *,
        sections: Mapping[str, Any] | None = None,
        device: str = "auto",
        **sampling: Any,
    ) -> Self:
        """Models by themselves, each a folder made here, a checkpoint of the reference code, or a registered name.

        Args:
            dit: the transformer.
            texture_vae: of the latents it was trained on; without it there are latents only, and no statistics of
                them are needed.
            guide: the weaker model; AutoGuidance is the default of calls then.
            semvae: the semantic compressor, for `encode`; the section `encoder` tells of its visual encoder.
            sections: what the files do not tell, as in `params.yaml`: `foreign` (statistics, heads, semantic_channels,
                delta_t), `semvae` (channels, width, depth, heads) and `encoder`.
            device: auto, cpu, cuda or cuda:N.
            **sampling: defaults of calls, settings of the section `sample`; `weights` and `compile` too.

        Raises:
            UserError: a model is missing or damaged, or they do not fit together.
        """
        sources = {"dit": dit, "texture_vae": texture_vae, "guide": guide, "semvae": semvae}
        return cls(*loading.from_checkpoints(sources, sections or {}, sampling, choose_device(device)))

    @classmethod
    def from_pretrained(cls, source: str | Path, device: str = "auto", revision: str | None = None) -> Self:
        """A pipeline that `save_pretrained` wrote: a local folder, or a repository of the Hugging Face hub.

        Reads safetensors and JSON only.

        Raises:
            UserError: it is neither, cannot be fetched, or is damaged or incomplete.
        """
        return cls(*loading.from_folder(source, cls.__name__, choose_device(device), revision))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the pipeline as safetensors and JSON, one folder a model; `model_index.json` comes last.

        Raises:
            UserError: the folder holds something already.
        """
        saving.save(Path(folder), type(self).__name__, self._sampler, self.semantic, self.encoder)

    @property
    def dit(self) -> LightningDiT:
        """The diffusion transformer."""
        return self._sampler.dit

    @property
    def guide(self) -> LightningDiT | None:
        """The weaker model of AutoGuidance."""
        return self._sampler.guide

    @property
    def texture_vae(self) -> TextureCompressor:
        """Decodes texture latents, and encodes images to them.

        Raises:
            UserError: the pipeline was loaded without.
        """
        return self._sampler.require_texture_vae()

    @property
    def image_size(self) -> int:
        """Side of the images, pixels."""
        return self._sampler.image_size

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w) of a composite latent."""
        return self._sampler.space.shape

    @property
    def device(self) -> torch.device:
        """Where all models are."""
        return self._sampler.device

    def __call__(
        self,
        labels: Labels,
        *,
        noise: Tensor | np.ndarray | None = None,
        output: Literal["pil", "uint8", "latent"] = "pil",
        **sampling: Any,
    ) -> PipelineOutput:
        """Sample an image for every label; the images are those of `sfd sample --labels`.

        Args:
            labels: class indices or names; one, or one for each image.
            noise: floats (n, C, h, w) to start from; without it image i's follows from `seed` and i.
            output: what comes back.
            **sampling: settings of the section `sample` over the pipeline's own: seed, steps, solver, delta_t,
                guidance, scale, ...

        Raises:
            UserError: an unknown class, setting or output, noise of the wrong shape, guidance without a guide, or
                images without a texture VAE.
            StageFailure: a latent is not finite.
        """
        if output not in OUTPUTS:
            raise UserError("output", f"{output!r} is not known", f"use one of {', '.join(OUTPUTS)}")
        if output == "latent":
            return PipelineOutput(self.sample_latents(labels, noise=noise, **sampling))
        self._sampler.require_texture_vae()
        sampler, inputs = _prepared(self._sampler, labels, noise, sampling)
        images = _joined(sampler.batches(inputs, range(inputs.count)))
        if output == "uint8":
            return PipelineOutput(images)
        return PipelineOutput([Image.fromarray(image) for image in images.permute(0, 2, 3, 1).cpu().numpy()])

    def sample_latents(self, labels: Labels, *, noise: Tensor | np.ndarray | None = None, **sampling: Any) -> Tensor:
        """Normalised composite latents (n, C, h, w), textures first; the arguments are those of a call."""
        sampler, inputs = _prepared(self._sampler, labels, noise, sampling)
        return _joined(sampler.latent_batches(inputs, range(inputs.count)))

    def decode(self, latents: Tensor) -> Tensor:
        """Images (n, 3, H, W) uint8 of normalised composite latents (n, C, h, w).

        Raises:
            UserError: latents of another shape, or the pipeline has no texture VAE.
        """
        self._sampler.require_texture_vae()
        if latents.ndim != 4 or latents.shape[1:] != self.shape:
            expected = ", ".join(map(str, self.shape))
            raise UserError("latents", f"have shape {tuple(latents.shape)}", f"give (n, {expected})")
        return self._sampler.decode(latents.to(self.device))

    def encode(self, images: Images, seed: int | None = None) -> Tensor:
        """Normalised composite latents (n, C, h, w) of images.

        Args:
            images: PIL images, which are centre-cropped, or uint8 (n, 3, H, W) of the pipeline's size.
            seed: draws a sample of the posterior; without it the latent is the posterior's mean.

        Raises:
            UserError: the pipeline has no encoder or one that does not fit, or images are none or of the wrong size.
        """
        pixels, space = as_pixels(images, self.image_size), self._sampler.space
        return encode_images(pixels, space, self.texture_vae, self.semantic, self.encoder, seed)

    def to(self, device: str | torch.device) -> Self:
        """Move all models; returns the pipeline itself.

        Raises:
            UserError: no such device here.
        """
        place = choose_device(str(device))
        for module in (self.dit, self.guide, self._sampler.texture_vae, self.semantic, self.encoder):
            if module is not None:
                module.to(place)
        return self


def _prepared(
    own: Sampler, labels: Labels, noise: Tensor | np.ndarray | None, sampling: dict[str, Any]
) -> tuple[Sampler, SampleInputs]:
    """The pipeline's own sampler with the settings of a call, and what its images start from."""
    sample = as_sample(own.sample.model_dump(exclude=set(NOT_OF_A_CALL)), sampling)
    rows, start = as_rows(labels, own.conditions), None if noise is None else as_noise(noise)
    if start is not None and len(start) != len(rows):
        raise UserError("noise", f"{len(start)} images of noise for {len(rows)} labels", "give as many")
    inputs = SampleInputs(sample.seed, None, len(rows), start, rows)
    inputs.require_fit(own.space, own.conditions)
    # Batches of equal size: the last one of a run is filled up, which a call for a few images must not pay for.
    batches = -(-len(rows) // sample.batch_size)
    return replace(own, sample=sample.model_copy(update={"batch_size": -(-len(rows) // batches)})), inputs


def _joined(batches: Iterator[tuple[list[int], Tensor]]) -> Tensor:
    return torch.cat([part for _, part in batches])

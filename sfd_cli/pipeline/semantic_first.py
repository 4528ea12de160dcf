"""Semantic-First Diffusion as one object: load it, call it, save it, in the manner of diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sfd_cli.devices import choose_device
from sfd_cli.errors import UserError
from sfd_cli.networks.lightning_dit import LightningDiT
from sfd_cli.networks.visual_encoder import VisualEncoder
from sfd_cli.pipeline.arguments import (
    NOT_TAKEN_OVER,
    Generators,
    Images,
    Labels,
    as_noise,
    as_pixels,
    as_rows,
    as_sample,
    drawn_noise,
)
from sfd_cli.pipeline.class_labels import plainly
from sfd_cli.pipeline.image_encoder import encode_images
from sfd_cli.pipeline.inputs import SampleInputs
from sfd_cli.pipeline.sampler import Sampler
from sfd_cli.pipeline.seeds import image_generator
from sfd_cli.pipeline.source_image import Picture, SourceImage
from sfd_cli.pipeline.steps import LATENTS, OnStepEnd, ProgressBar, StepWatch, require_tensors
from sfd_cli.pipeline.storing import StoredPipeline
from sfd_cli.pipeline.strip import strip_of
from sfd_cli.tables import SOLVERS
from sfd_cli.weights.models import SemanticCompressor, TextureCompressor

OUTPUTS = ("pil", "uint8", "latent")


@dataclass(frozen=True)
class PipelineOutput:
    """PIL images; or, by `output`, uint8 (n, 3, H, W) or normalised composite latents (n, C, h, w)."""

    images: list[Image.Image] | Tensor


class SemanticFirstPipeline(StoredPipeline, ProgressBar):
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
        super().__init__(sampler, semantic, encoder)
        self.class_names = list(sampler.conditions.names)

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
        generator: Generators | None = None,
        image: Picture | None = None,
        mask: Picture | None = None,
        output: Literal["pil", "uint8", "latent"] = "pil",
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = (LATENTS,),
        **sampling: Any,
    ) -> PipelineOutput:
        """Sample an image for every label; the images are those of `sfd sample --labels`.

        Args:
            labels: class indices or names, `null` for the null label; one, or one for each image.
            noise: floats (n, C, h, w) to start from; without it image i's follows from `seed` and i.
            generator: draws the noise instead of `seed`: one for all images, which goes on where it is, or one for
                each; those that `generators` gives draw what `seed` does. Not for a stochastic solver.
            image: a picture to make all images of, PIL or a path; centre-cropped. The settings `keep` and `start_time`
                say how, and `mask`. Needs what `encode` does.
            mask: black and white, as large as `image`: what is white is drawn anew.
            output: what comes back.
            callback_on_step_end: called as (pipeline, step, T, {"latents": ...}) after every solver step of every
                batch, T being the schedule's progress there and latents (n, C, h, w) those of the batch, normalised,
                not to be changed in place. Others that it gives back under that name are gone on with.
            callback_on_step_end_tensor_inputs: as in diffusers; there are latents, and nothing else.
            **sampling: settings of the section `sample` over the pipeline's own: seed, steps, solver, delta_t,
                guidance, scale, ...; and `to_seed` or `to_class`, for a strip of images from one to another.

        Raises:
            UserError: an unknown class, setting or output, noise of the wrong shape, more than one source of noise,
                guidance without a guide, images without a texture VAE, or a picture that cannot be made images of as
                asked for.
            StageFailure: a latent is not finite.
        """
        self._require_output(output)
        require_tensors(callback_on_step_end_tensor_inputs)
        sampler, inputs = _prepared(self._sampler, labels, noise, generator, sampling)
        if (source := SourceImage.open(sampler.sample, image, mask)) is not None:
            sampler = replace(sampler, origin=source.origin(sampler, self.semantic, self.encoder))
        batches = sampler.latent_batches if output == "latent" else sampler.batches
        count = -(-inputs.count // sampler.batch_size)
        with self.progress_bar(total=count * sampler.steps) as bar:
            watch = StepWatch(bar, callback_on_step_end, self)
            made = torch.cat([part for _, part in batches(inputs, range(inputs.count), watch)])
        if output != "pil":
            return PipelineOutput(made)
        return PipelineOutput([Image.fromarray(image) for image in made.permute(0, 2, 3, 1).cpu().numpy()])

    def _require_output(self, output: str) -> None:
        if output not in OUTPUTS:
            raise UserError("output", f"{output!r} is not known", f"use one of {', '.join(OUTPUTS)}")
        if output != "latent":
            self._sampler.require_texture_vae()

    def sample_latents(self, labels: Labels, **arguments: Any) -> Tensor:
        """Normalised composite latents (n, C, h, w), textures first; the arguments are those of a call."""
        made = self(labels, output="latent", **arguments).images
        assert isinstance(made, Tensor)
        return made

    @staticmethod
    def generators(seed: int, count: int) -> list[torch.Generator]:
        """The generators by which `seed` draws the noise of the first `count` images, here and in `sfd sample`."""
        return [image_generator(seed, index) for index in range(count)]

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
    own: Sampler,
    labels: Labels,
    noise: Tensor | np.ndarray | None,
    generator: Generators | None,
    sampling: dict[str, Any],
) -> tuple[Sampler, SampleInputs]:
    """The pipeline's own sampler with the settings of a call, and what its images start from."""
    sample = as_sample(own.sample.model_dump(exclude=NOT_TAKEN_OVER), sampling)
    rows = as_rows(labels, own.conditions)
    classes, own_noise = plainly(rows.tolist(), own.conditions), noise is not None or generator is not None
    strip = strip_of(sample, classes, len(rows), own_noise, "labels")
    if generator is not None:
        if noise is not None or "seed" in sampling:
            other = "noise" if noise is not None else "seed"
            raise UserError("generator", f"noise comes from it or from {other}, not both", "give one of them")
        if SOLVERS[sample.solver].is_stochastic:
            raise UserError("generator", f"draws the start alone, and {sample.solver} noise in every step", "give seed")
        noise = drawn_noise(generator, len(rows), own.space.shape)
    start = None if noise is None else as_noise(noise)
    if start is not None and len(start) != len(rows):
        raise UserError("noise", f"{len(start)} images of noise for {len(rows)} labels", "give as many")
    inputs = SampleInputs(sample.seed, classes, len(rows), start, strip=strip)
    inputs.require_fit(own.space, own.conditions)
    # Batches of equal size: the last one of a run is filled up, which a call for a few images must not pay for.
    batches = -(-len(rows) // sample.batch_size)
    return replace(own, sample=sample.model_copy(update={"batch_size": -(-len(rows) // batches)})), inputs

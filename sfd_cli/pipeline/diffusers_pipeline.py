"""`SemanticFirstPipeline` for those who load pipelines by diffusers: its names of arguments, its kinds of output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from torch import Tensor

from sfd_cli.errors import UserError
from sfd_cli.formats.diffusers import held_autoencoder
from sfd_cli.formats.format import about
from sfd_cli.pipeline.arguments import Generators, Labels, as_rows, as_sample
from sfd_cli.pipeline.diffusers_models import (
    SemanticFirstScheduler,
    SemanticFirstTextureCompressor,
    SemanticFirstTransformer2DModel,
)
from sfd_cli.pipeline.layout import SOLVING
from sfd_cli.pipeline.models import SamplingModels
from sfd_cli.pipeline.semantic_first import SemanticFirstPipeline
from sfd_cli.pipeline.steps import LATENTS, OnStepEnd
from sfd_cli.weights.model import LoadedModel, Model
from sfd_cli.weights.models import TextureCompressor, conditions_of, space_of

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


class SemanticFirstDiffusionPipeline(DiffusionPipeline):
    """A saved pipeline with its components in diffusers' places; what it computes is `SemanticFirstPipeline`'s.

    `DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipeline", trust_remote_code=True)` gives one. It
    samples: what only encoding needs it neither loads nor saves again.

    Args:
        transformer: the diffusion transformer.
        scheduler: law of times and solver.
        vae: diffusers' AutoencoderKL, or another texture compressor; None where latents are all that is wanted.
        guide: the weaker model of AutoGuidance.
        sample: settings of the section `sample` that the scheduler does not have: guidance, scale, seed, ...
    """

    _optional_components: ClassVar[list[str]] = ["vae", "guide"]
    _callback_tensor_inputs: ClassVar[list[str]] = [LATENTS]

    def __init__(
        self,
        transformer: SemanticFirstTransformer2DModel,
        scheduler: SemanticFirstScheduler,
        vae: AutoencoderKL | SemanticFirstTextureCompressor | None = None,
        guide: SemanticFirstTransformer2DModel | None = None,
        sample: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae, guide=guide)
        self.register_to_config(sample=dict(sample or {}))

    @property
    def semantic_first(self) -> SemanticFirstPipeline:
        """The same networks and settings as a `SemanticFirstPipeline`.

        Raises:
            UserError: components do not belong together.
        """
        dit = self.transformer.model
        guide = None if self.guide is None else self.guide.model
        models = SamplingModels(dit, guide, self._texture_vae(space_of(dit).texture))
        solving = self.scheduler.sample.model_dump(include=set(SOLVING))
        sampler = models.load(as_sample({}, solving | dict(self.config.sample)), self.device)
        pipeline = SemanticFirstPipeline(sampler)
        pipeline.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}))
        return pipeline

    def __call__(
        self,
        class_labels: Labels,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: Generators | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = (LATENTS,),
        **sampling: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Sample an image for every label.

        Args:
            class_labels: class indices or names; one, or one for each image.
            num_inference_steps: solver steps; the scheduler's unless given.
            guidance_scale: of both streams, 1 for none; where the pipeline was saved without guidance, one above 1
                is classifier-free guidance.
            generator: as of `SemanticFirstPipeline`; without one the images follow from the pipeline's seed, and are
                those of `sfd sample`.
            latents: normalised noise (n, C, h, w), textures first, to start from.
            output_type: pil; np, float32 (n, H, W, 3) in [0, 1]; pt, float32 (n, 3, H, W) in [0, 1]; or latent.
            return_dict: an ImagePipelineOutput instead of a tuple.
            callback_on_step_end: as of `SemanticFirstPipeline`.
            callback_on_step_end_tensor_inputs: likewise.
            **sampling: more settings of the section `sample`.

        Raises:
            UserError: as a call of `SemanticFirstPipeline`.
        """
        if output_type not in OUTPUT_TYPES:
            raise UserError("output_type", f"{output_type!r} is not known", f"use one of {', '.join(OUTPUT_TYPES)}")
        if num_inference_steps is not None:
            sampling = {"steps": num_inference_steps} | sampling
        if guidance_scale is not None:
            guides = {"guidance": "cfg"} if guidance_scale > 1 and self._unguided else {}
            sampling = guides | {"scale": guidance_scale} | sampling
        made = self.semantic_first(
            class_labels,
            noise=latents,
            generator=generator,
            output="uint8" if output_type in ("np", "pt") else output_type,  # type: ignore[arg-type]
            callback_on_step_end=callback_on_step_end and self._with_self(callback_on_step_end),
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            **sampling,
        ).images
        images = made if output_type in ("pil", "latent") else _floats(made, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def get_label_ids(self, label: str | Sequence[str]) -> list[int]:
        """Class indices of names, as diffusers' DiTPipeline has it.

        Raises:
            UserError: no class is called so.
        """
        rows: list[int] = as_rows(label, conditions_of(self.transformer.model)).tolist()
        return rows

    def save_pretrained(self, save_directory: str | Path, **card: Any) -> None:
        """As of `SemanticFirstPipeline`, whose other arguments may be given too."""
        self.semantic_first.save_pretrained(save_directory, **card)

    def push_to_hub(self, repo_id: str, **arguments: Any) -> str:
        """As of `SemanticFirstPipeline`."""
        return self.semantic_first.push_to_hub(repo_id, **arguments)

    @property
    def _unguided(self) -> bool:
        return self.config.sample.get("guidance", "none") == "none"

    def _texture_vae(self, channels: int) -> Model[TextureCompressor] | None:
        if self.vae is None:
            return None
        if not isinstance(self.vae, AutoencoderKL):
            model: Model[TextureCompressor] = self.vae.model
            return model
        with about("vae"):
            return LoadedModel("vae", Path(), "", held_autoencoder(self.vae, channels))

    def _with_self(self, callback: OnStepEnd) -> OnStepEnd:
        """The callback with this pipeline as its first argument."""

        def called(_: Any, step: int, progress: float, tensors: dict[str, Tensor]) -> Mapping[str, Tensor] | None:
            return callback(self, step, progress, tensors)

        return called


def _floats(images: Any, output_type: str) -> np.ndarray | Tensor:
    """Images uint8 (n, 3, H, W) as floats in [0, 1]."""
    floats: Tensor = images.float() / 255
    return floats if output_type == "pt" else floats.permute(0, 2, 3, 1).cpu().numpy()

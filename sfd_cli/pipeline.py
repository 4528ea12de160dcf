"""Semantic-First Diffusion as one object: load it, call it, save it, in the manner of diffusers' pipelines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from sfd_cli import __version__
from sfd_cli.config import Encoder, Sample, Settings, describe, load_settings, validate_settings
from sfd_cli.data.images import as_rgb, center_crop
from sfd_cli.errors import UserError
from sfd_cli.files import read_json, write_json
from sfd_cli.networks.gaussian import draw
from sfd_cli.networks.lightning_dit import LightningDiT
from sfd_cli.networks.texture_vae import TextureVAE
from sfd_cli.networks.visual_encoder import VisualEncoder
from sfd_cli.stages.composite import CompositeEncoder
from sfd_cli.stages.device import choose_device
from sfd_cli.stages.sample_inputs import SampleInputs
from sfd_cli.stages.sampler import Flow, Sampler, decode_textures, read_statistics
from sfd_cli.weights.convert import VisualEncoderConfig
from sfd_cli.weights.encoders import load_visual_encoder
from sfd_cli.weights.model_files import dit_weights, load_dit, load_semantic, load_texture_vae, save_model
from sfd_cli.weights.sources import SemanticCompressor, open_semantic

INDEX = "model_index.json"
IMAGES_AT_ONCE = 16
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

Images = Image.Image | Sequence[Image.Image] | Tensor


@dataclass(frozen=True)
class PipelineOutput:
    """What a call gives.

    Attributes:
        images: PIL images; or, as asked for, uint8 (n, 3, H, W), or normalised composite latents (n, C, h, w).
    """

    images: list[Image.Image] | Tensor


class SemanticFirstPipeline:
    """A trained transformer with all it needs to make images, and, if wanted, to encode them.

    Args:
        sampler: transformer, guide, texture VAE and latent statistics on one device; its settings are the defaults
            of every call.
        image_size: side of the images, pixels.
        semantic: the Semantic VAE or principal components, for `encode`.
        encoder: the visual encoder, for `encode`.

    Attributes:
        class_names: of every class, in order.
    """

    def __init__(
        self,
        sampler: Sampler,
        image_size: int,
        semantic: SemanticCompressor | None = None,
        encoder: VisualEncoder | None = None,
    ) -> None:
        self._sampler = sampler
        self.image_size = image_size
        self.semantic = semantic
        self.encoder = encoder
        self.class_names = sampler.class_names

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
        place = choose_device(device)
        sampler = Sampler.load(settings, place)
        size = sampler.flow.shape[-1] * sampler.texture_vae.downsampling
        pipeline = cls(sampler, size)
        if encoder and settings.semvae.compressor != "none":
            pipeline.semantic = open_semantic(settings).to(place)
            pipeline.encoder = load_visual_encoder(settings.encoder).to(place)
        return pipeline

    @classmethod
    def from_checkpoints(
        cls,
        dit: str | Path,
        texture_vae: str | Path,
        guide: str | Path | None = None,
        *,
        texture_statistics: str | Path | None = None,
        semantic_statistics: str | Path | None = None,
        device: str = "auto",
        **sampling: Any,
    ) -> Self:
        """Models by themselves, each a folder made here, a checkpoint of the reference code, or a registered name.

        Args:
            dit: the transformer.
            texture_vae: of the latents it was trained on.
            guide: the weaker model; AutoGuidance is the default of calls then.
            texture_statistics: mean and std of the texture latents, for a checkpoint that neither holds them nor is
                registered.
            semantic_statistics: likewise.
            device: auto, cpu, cuda or cuda:N.
            **sampling: defaults of calls, settings of the section `sample`.

        Raises:
            UserError: a model is missing or damaged, or they do not fit together.
        """
        paths = {"dit": dit, "texture_vae": texture_vae} | ({} if guide is None else {"guide": guide})
        told = {"texture_statistics": texture_statistics, "semantic_statistics": semantic_statistics}
        foreign = {name: str(source) for name, source in told.items() if source is not None}
        guided = {} if guide is None else {"guidance": "autoguidance"}
        sections = {"paths": paths, "foreign": foreign, "sample": guided | sampling}
        return cls.from_settings(validate_settings(sections, "from_checkpoints"), device)

    @classmethod
    def from_pretrained(cls, source: str | Path, device: str = "auto", revision: str | None = None) -> Self:
        """A pipeline that `save_pretrained` wrote: a local folder, or a repository of the Hugging Face hub.

        Reads safetensors and JSON only.

        Raises:
            UserError: it is neither, cannot be fetched, or is damaged or incomplete.
        """
        folder = _local(source, revision)
        if not (folder / INDEX).exists():
            raise UserError(f"{folder} holds no pipeline (no {INDEX}); `save_pretrained` writes one")
        index = read_json(folder / INDEX)
        if not isinstance(index, dict) or index.get("_class_name") != cls.__name__:
            raise UserError(f"{folder / INDEX} does not describe a {cls.__name__}; check the path")
        parts, place = index.get("components", []), choose_device(device)
        dit, about = load_dit(folder / "dit")
        guide = load_dit(folder / "guide")[0].to(place) if "guide" in parts else None
        flow = Flow(dit.to(place), guide, _sample({}, index.get("sample", {})), about, str(folder / "dit"))
        flow.require_fit(str(folder / "guide"))
        mean, std = read_statistics(about, dit, flow.name)
        texture_vae = load_texture_vae(folder / "texture_vae")[0].to(place)
        pipeline = cls(Sampler(flow, texture_vae, (mean.to(place), std.to(place))), int(index["image_size"]))
        if "semantic" in parts:
            pipeline.semantic = load_semantic(folder / "semantic")[0].to(place)
        if "encoder" in parts:
            told = Encoder(**index["encoder"], weights=str(folder / "encoder"))
            pipeline.encoder = load_visual_encoder(told).to(place)
        return pipeline

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the pipeline as safetensors and JSON, one folder a model; `model_index.json` comes last.

        Raises:
            UserError: the folder holds something already.
        """
        folder = Path(folder)
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder} is not empty; give another name or empty it")
        flow = self._sampler.flow
        mean, std = (part.flatten().tolist() for part in self._sampler.statistics)
        about = {"delta_t": flow.about.get("delta_t"), "classes": self.class_names, "image_size": self.image_size}
        extra = about | {"statistics": {"mean": mean, "std": std}}
        save_model(folder / "dit", "LightningDiT", flow.dit.config, dit_weights(flow.dit, "ema"), extra)
        components = ["dit", "texture_vae"]
        if flow.guide is not None:
            save_model(folder / "guide", "LightningDiT", flow.guide.config, dit_weights(flow.guide, "ema"), {})
            components.append("guide")
        vae = self.texture_vae
        save_model(folder / "texture_vae", "TextureVAE", vae.config, {"model": vae.state_dict()}, {})
        index: dict[str, Any] = {"_class_name": type(self).__name__, "_sfd_version": __version__}
        index |= {"image_size": self.image_size, "sample": flow.sample.model_dump(mode="json")}
        if self.semantic is not None:
            kind, state = type(self.semantic).__name__, self.semantic.state_dict()
            save_model(folder / "semantic", kind, self.semantic.config, {"model": state}, {})
            components.append("semantic")
        if self.encoder is not None:
            _save_encoder(self.encoder, folder / "encoder")
            components.append("encoder")
            shown = ("name", "image_size", "tiles")
            index["encoder"] = {key: getattr(self.encoder, key) for key in shown}
        write_json(folder / INDEX, index | {"components": components})

    @property
    def dit(self) -> LightningDiT:
        """The diffusion transformer."""
        return self._sampler.flow.dit

    @property
    def guide(self) -> LightningDiT | None:
        """The weaker model of AutoGuidance."""
        return self._sampler.flow.guide

    @property
    def texture_vae(self) -> TextureVAE:
        """Decodes texture latents, and encodes images to them."""
        return self._sampler.texture_vae

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w) of a composite latent."""
        return self._sampler.flow.shape

    @property
    def device(self) -> torch.device:
        """Where all models are."""
        return self._sampler.flow.device

    def __call__(
        self,
        labels: int | str | Sequence[int | str],
        *,
        noise: Tensor | None = None,
        output: Literal["pil", "uint8", "latent"] = "pil",
        **sampling: Any,
    ) -> PipelineOutput:
        """Sample an image for every label.

        Args:
            labels: class indices or names; one, or one for each image.
            noise: (n, C, h, w) to start from; without it image i's follows from `seed` and i.
            output: what comes back.
            **sampling: settings of the section `sample` over the pipeline's own: seed, steps, solver, delta_t,
                guidance, scale, ...

        Raises:
            UserError: an unknown class or setting, noise of the wrong shape, or guidance without a guide.
            StageFailure: a latent is not finite.
        """
        latents = self.sample_latents(labels, noise=noise, **sampling)
        if output == "latent":
            return PipelineOutput(latents)
        images = self.decode(latents)
        if output == "uint8":
            return PipelineOutput(images)
        if output != "pil":
            raise UserError(f"output: {output!r} is not known; use 'pil', 'uint8' or 'latent'")
        return PipelineOutput([Image.fromarray(image) for image in images.permute(0, 2, 3, 1).cpu().numpy()])

    def sample_latents(
        self, labels: int | str | Sequence[int | str], *, noise: Tensor | None = None, **sampling: Any
    ) -> Tensor:
        """Normalised composite latents (n, C, h, w), textures first; the arguments are those of a call."""
        sample = _sample(self._sampler.flow.sample.model_dump(), sampling)
        flow = replace(self._sampler.flow, sample=sample)
        flow.require_fit("the guide")
        if sample.guidance == "autoguidance" and flow.guide is None:
            raise UserError("guidance: 'autoguidance' needs a guide, and this pipeline has none; use 'cfg' or 'none'")
        wanted = [labels] if isinstance(labels, int | str) else list(labels)
        given = None if noise is None else noise.detach().float().cpu().numpy()
        numbers = np.asarray([self._label(label) for label in wanted], np.int64)
        if given is not None and len(given) != len(numbers):
            raise UserError(f"noise: {len(given)} images of noise for {len(numbers)} labels; give as many")
        inputs = SampleInputs(sample.seed, None, len(numbers), given, numbers)
        inputs.require_fit(flow.shape, flow.dit.config.num_classes)
        batches = range(0, len(numbers), sample.batch_size)
        parts = [flow.latents(inputs, range(i, min(i + sample.batch_size, len(numbers)))) for i in batches]
        return torch.cat(parts)

    def decode(self, latents: Tensor) -> Tensor:
        """Images (n, 3, H, W) uint8 of normalised composite latents (n, C, h, w)."""
        return decode_textures(self.texture_vae, latents.to(self.device), self._sampler.statistics)

    @torch.inference_mode()
    def encode(self, images: Images, seed: int | None = None) -> Tensor:
        """Normalised composite latents (n, C, h, w) of images.

        Args:
            images: PIL images, which are centre-cropped, or uint8 (n, 3, H, W) of the pipeline's size.
            seed: draws a sample of the posterior; without it the posterior's mean is given.

        Raises:
            UserError: the pipeline has no encoder, or images have the wrong size.
        """
        needed = self.dit.config.semantic_channels > 0
        if needed and (self.encoder is None or self.semantic is None):
            raise UserError("this pipeline has no encoder to encode with; load it by from_settings(..., encoder=True)")
        pixels = self._pixels(images)
        composite = CompositeEncoder(self.texture_vae, self.semantic if needed else None)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        latents = []
        for part in pixels.split(IMAGES_AT_ONCE):
            part = part.to(self.device)
            tokens = self.encoder(part.float() / 255)[0] if needed and self.encoder is not None else None
            streams = []
            for mean, logvar in composite.posteriors(part, tokens).values():
                if generator is not None:
                    mean = draw(mean, logvar, torch.randn(mean.shape, generator=generator).to(self.device))
                streams.append(mean)
            latents.append(torch.cat(streams, dim=1))
        mean, std = self._sampler.statistics
        return (torch.cat(latents) - mean) / std

    def to(self, device: str | torch.device) -> Self:
        """Move all models; returns the pipeline itself."""
        place = torch.device(device)
        for module in (self.dit, self.guide, self.texture_vae, self.semantic, self.encoder):
            if module is not None:
                module.to(place)
        mean, std = self._sampler.statistics
        self._sampler = replace(self._sampler, statistics=(mean.to(place), std.to(place)))
        return self

    def _label(self, label: int | str) -> int:
        if not isinstance(label, str):
            return int(label)
        if label not in self.class_names:
            raise UserError(f"no class is called {label!r}; `class_names` lists them")
        return self.class_names.index(label)

    def _pixels(self, images: Images) -> Tensor:
        if isinstance(images, Tensor):
            expected = (3, self.image_size, self.image_size)
            if images.dtype != torch.uint8 or images.shape[1:] != expected:
                raise UserError(
                    f"images: {images.dtype} of shape {tuple(images.shape)}; expected uint8 of shape"
                    f" (n, {', '.join(map(str, expected))})"
                )
            return images
        pictures = [images] if isinstance(images, Image.Image) else list(images)
        crops = [np.asarray(center_crop(as_rgb(picture), self.image_size)) for picture in pictures]
        return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()


def _sample(defaults: dict[str, Any], changes: dict[str, Any]) -> Sample:
    try:
        return Sample.model_validate(defaults | changes)
    except ValidationError as error:
        raise UserError(f"sampling: {describe(error, Sample)}") from None


def _local(source: str | Path, revision: str | None) -> Path:
    """The folder itself, or the hub's repository of that name in the hub's own cache."""
    if Path(source).is_dir():
        return Path(source)
    if not _HUB_ID.fullmatch(str(source)):
        raise UserError(f"{source} is no folder, and no name of a hub repository (owner/name)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=["*.json", "*.safetensors"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UserError(
            f"{source} is no folder here, and could not be fetched from the hub ({' '.join(str(error).split())[:300]})"
        ) from None


def _save_encoder(encoder: VisualEncoder, folder: Path) -> None:
    save_model(folder, "VisualEncoder", VisualEncoderConfig(encoder.name), {"model": encoder.network.state_dict()}, {})

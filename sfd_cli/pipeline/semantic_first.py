"""Semantic-First Diffusion as one object: load it, call it, save it, in the manner of diffusers' pipelines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from sfd_cli import __version__
from sfd_cli.config import Encoder, Sample, Section, SemVAE, Settings, first_problem, load_settings, validate_settings
from sfd_cli.data.images import as_rgb, center_crop
from sfd_cli.device import choose_device
from sfd_cli.errors import UserError
from sfd_cli.files import read_json, write_json
from sfd_cli.formats.dinov2 import VisualEncoderConfig
from sfd_cli.formats.model_folder import dit_weights, save_model
from sfd_cli.networks.gaussian import draw
from sfd_cli.networks.lightning_dit import LightningDiT
from sfd_cli.networks.semantic_pca import SemanticPCA
from sfd_cli.networks.semantic_vae import SemanticVAE
from sfd_cli.networks.texture_vae import TextureVAE
from sfd_cli.networks.visual_encoder import VisualEncoder
from sfd_cli.pipeline.encoding import CompositeEncoder
from sfd_cli.pipeline.inputs import SampleInputs, images_at_once
from sfd_cli.pipeline.sampler import Flow, Sampler, decode_textures, read_statistics
from sfd_cli.weights.models import Model, SemanticCompressor, open_model, open_semantic
from sfd_cli.weights.visual_encoders import load_visual_encoder

INDEX = "model_index.json"
IMAGES_AT_ONCE = 16
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

COMPONENTS = ("dit", "guide", "texture_vae", "semantic", "encoder")
OUTPUTS = ("pil", "uint8", "latent")
# What `model_index.json` tells of the encoder, whose folder holds its weights only.
ENCODER_ENTRY = ("name", "image_size", "tiles")
# Settings of the section `sample` that a call has no use for, and what there is instead.
NOT_OF_A_CALL = {
    "num_images": "a call makes one image for every label",
    "classes": "a call takes classes as its labels",
    "weights": "they are chosen when models are loaded from settings or checkpoints",
    "compile": "it is done when models are loaded from settings or checkpoints",
}

Images = Image.Image | Sequence[Image.Image] | Tensor
Labels = int | str | Sequence[int | str] | np.ndarray | Tensor
S = TypeVar("S", bound=Section)


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
        flow: transformer and guide on one device; its settings are the defaults of every call.
        sampler: the same with texture VAE and latent statistics; without it there are latents only.
        semantic: the Semantic VAE or principal components, for `encode`.
        encoder: the visual encoder, for `encode`.

    Attributes:
        class_names: of every class, in order.
    """

    def __init__(
        self,
        flow: Flow,
        sampler: Sampler | None = None,
        semantic: SemanticCompressor | None = None,
        encoder: VisualEncoder | None = None,
    ) -> None:
        self._flow = flow
        self._sampler = sampler
        self.semantic = semantic
        self.encoder = encoder
        self.class_names = flow.class_names

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
        pipeline = cls(sampler.flow, sampler)
        if encoder and pipeline.dit.config.semantic_channels:
            pipeline._load_encoder(settings)
        return pipeline

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
        told, place = dict(sections or {}), choose_device(device)
        strangers = sorted(map(str, told.keys() - {"foreign", "semvae", "encoder"}))
        if strangers:
            raise UserError(f"sections: {', '.join(strangers)} will not do; give foreign, semvae and encoder only")
        if ("encoder" in told) != (semvae is not None) or (semvae is None and "semvae" in told):
            raise UserError("encoding needs both semvae and the section 'encoder' of its encoder; give both or neither")
        named = {"dit": dit, "texture_vae": texture_vae, "guide": guide, "semvae": semvae}
        paths = {name: source for name, source in named.items() if source is not None}
        guided = {} if guide is None else {"guidance": "autoguidance"}
        sample = _sample(guided, sampling, "weights", "compile")
        plain = {"paths": paths, "sample": sample, "foreign": told.pop("foreign", {})}
        settings = validate_settings(plain, "from_checkpoints")
        kinds: dict[str, type[Section]] = {"semvae": SemVAE, "encoder": Encoder}
        # Not validated together: what else a project is made of, which images say, is not asked for here.
        settings = settings.model_copy(update={key: _section(kinds[key], told[key], key) for key in told})
        if texture_vae is None:
            pipeline = cls(Flow.load(settings, place))
        else:
            sampler = Sampler.load(settings, place)
            pipeline = cls(sampler.flow, sampler)
        if semvae is not None:
            pipeline._load_encoder(settings)
        return pipeline

    @classmethod
    def from_pretrained(cls, source: str | Path, device: str = "auto", revision: str | None = None) -> Self:
        """A pipeline that `save_pretrained` wrote: a local folder, or a repository of the Hugging Face hub.

        Reads safetensors and JSON only.

        Raises:
            UserError: it is neither, cannot be fetched, or is damaged or incomplete.
        """
        folder, place = _local(source, revision), choose_device(device)
        index = _read_index(folder, cls.__name__)
        parts, sample = index["components"], _sample({}, index.get("sample", {}))
        opened = open_model(folder / "dit", LightningDiT)
        dit, about = opened.load(), opened.facts
        guide = open_model(folder / "guide", LightningDiT).load().to(place) if "guide" in parts else None
        flow = Flow(dit.to(place), guide, sample, about, str(folder / "dit"))
        flow.require_fit(str(folder / "guide"))
        sampler = semantic = encoder = None
        if "texture_vae" in parts:
            mean, std = read_statistics(about, dit, flow.name)
            texture_vae = open_model(folder / "texture_vae", TextureVAE).load().to(place)
            sampler = Sampler(flow, texture_vae, (mean.to(place), std.to(place)))
        if "semantic" in parts:
            opened_semantic: Model[SemanticCompressor] = open_model(folder / "semantic", (SemanticVAE, SemanticPCA))
            semantic = opened_semantic.load().to(place)
        if "encoder" in parts:
            told = index["encoder"] | {"weights": str(folder / "encoder")}
            encoder = load_visual_encoder(_section(Encoder, told, f"{folder / INDEX}: encoder")).to(place)
        return cls(flow, sampler, semantic, encoder)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the pipeline as safetensors and JSON, one folder a model; `model_index.json` comes last.

        Raises:
            UserError: the folder holds something already.
        """
        folder = Path(folder)
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder} is not empty; give another name or empty it")
        flow = self._flow
        kept = ("delta_t", "classes", "statistics")
        extra: dict[str, Any] = {key: flow.about[key] for key in kept if key in flow.about}
        components = ["dit"]
        if self._sampler is not None:
            vae = self._sampler.texture_vae
            save_model(folder / "texture_vae", "TextureVAE", vae.config, {"model": vae.state_dict()}, {})
            components.append("texture_vae")
            extra["image_size"] = self.image_size
        save_model(folder / "dit", "LightningDiT", flow.dit.config, dit_weights(flow.dit, "ema"), extra)
        if flow.guide is not None:
            save_model(folder / "guide", "LightningDiT", flow.guide.config, dit_weights(flow.guide, "ema"), {})
            components.append("guide")
        index: dict[str, Any] = {"_class_name": type(self).__name__, "_sfd_version": __version__}
        index["sample"] = flow.sample.model_dump(mode="json", exclude=set(NOT_OF_A_CALL))
        if self.semantic is not None:
            kind, state = type(self.semantic).__name__, self.semantic.state_dict()
            save_model(folder / "semantic", kind, self.semantic.config, {"model": state}, {})
            components.append("semantic")
        if self.encoder is not None:
            _save_encoder(self.encoder, folder / "encoder")
            components.append("encoder")
            index["encoder"] = {key: getattr(self.encoder, key) for key in ENCODER_ENTRY}
        write_json(folder / INDEX, index | {"components": components})

    @property
    def dit(self) -> LightningDiT:
        """The diffusion transformer."""
        return self._flow.dit

    @property
    def guide(self) -> LightningDiT | None:
        """The weaker model of AutoGuidance."""
        return self._flow.guide

    @property
    def texture_vae(self) -> TextureVAE:
        """Decodes texture latents, and encodes images to them.

        Raises:
            UserError: the pipeline was loaded without.
        """
        return self._with_texture_vae().texture_vae

    @property
    def image_size(self) -> int:
        """Side of the images, pixels."""
        return self.shape[-1] * self.texture_vae.downsampling

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w) of a composite latent."""
        return self._flow.shape

    @property
    def device(self) -> torch.device:
        """Where all models are."""
        return self._flow.device

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
            raise UserError(f"output: {output!r} is not known; use 'pil', 'uint8' or 'latent'")
        if output != "latent":
            self._with_texture_vae()
        latents = self.sample_latents(labels, noise=noise, **sampling)
        if output == "latent":
            return PipelineOutput(latents)
        images = self.decode(latents)
        if output == "uint8":
            return PipelineOutput(images)
        return PipelineOutput([Image.fromarray(image) for image in images.permute(0, 2, 3, 1).cpu().numpy()])

    def sample_latents(self, labels: Labels, *, noise: Tensor | np.ndarray | None = None, **sampling: Any) -> Tensor:
        """Normalised composite latents (n, C, h, w), textures first; the arguments are those of a call."""
        sample = _sample(self._flow.sample.model_dump(exclude=set(NOT_OF_A_CALL)), sampling)
        flow = replace(self._flow, sample=sample)
        flow.require_fit("the guide")
        if sample.guidance == "autoguidance" and flow.guide is None:
            raise UserError("guidance: 'autoguidance' needs a guide, and this pipeline has none; use 'cfg' or 'none'")
        numbers, given = self._numbers(labels), None if noise is None else _as_noise(noise)
        if given is not None and len(given) != len(numbers):
            raise UserError(f"noise: {len(given)} images of noise for {len(numbers)} labels; give as many")
        inputs = SampleInputs(sample.seed, None, len(numbers), given, numbers)
        inputs.require_fit(flow.shape, flow.dit.config.num_classes)
        size, parts = images_at_once(sample), []
        with tf32(flow.device):
            for start in range(0, len(numbers), size):
                # An adaptive step size comes from the whole group, so that is filled up as `sfd sample` does.
                end = start + size if sample.solver == "dopri5" else min(start + size, len(numbers))
                parts.append(flow.latents(inputs, range(start, end)))
        return torch.cat(parts)[: len(numbers)]

    def decode(self, latents: Tensor) -> Tensor:
        """Images (n, 3, H, W) uint8 of normalised composite latents (n, C, h, w).

        Raises:
            UserError: latents of another shape, or the pipeline has no texture VAE.
        """
        sampler = self._with_texture_vae()
        if latents.ndim != 4 or latents.shape[1:] != self.shape:
            expected = ", ".join(map(str, self.shape))
            raise UserError(f"latents: they have shape {tuple(latents.shape)}; expected (n, {expected})")
        with tf32(self.device):
            return decode_textures(sampler.texture_vae, latents.to(self.device), sampler.statistics)

    @torch.inference_mode()
    def encode(self, images: Images, seed: int | None = None) -> Tensor:
        """Normalised composite latents (n, C, h, w) of images.

        Args:
            images: PIL images, which are centre-cropped, or uint8 (n, 3, H, W) of the pipeline's size.
            seed: draws a sample of the posterior; without it the posterior's mean is given.

        Raises:
            UserError: the pipeline has no encoder or one that does not fit, or images are none or of the wrong size.
        """
        sampler, encoder, semantic = self._with_texture_vae(), self.encoder, self.semantic
        if self.dit.config.semantic_channels:
            self._require_encoder()
        else:
            encoder = semantic = None
        pixels = self._pixels(images)
        composite = CompositeEncoder(sampler.texture_vae, semantic)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        latents = []
        for part in pixels.split(IMAGES_AT_ONCE):
            part = part.to(self.device)
            tokens = None if encoder is None else encoder(part.float() / 255)[0]
            streams = []
            for mean, logvar in composite.posteriors(part, tokens).values():
                if generator is not None:
                    mean = draw(mean, logvar, torch.randn(mean.shape, generator=generator).to(self.device))
                streams.append(mean)
            latents.append(torch.cat(streams, dim=1))
        mean, std = sampler.statistics
        return (torch.cat(latents) - mean) / std

    def to(self, device: str | torch.device) -> Self:
        """Move all models; returns the pipeline itself.

        Raises:
            UserError: no such device here.
        """
        place = choose_device(str(device))
        for module in (self.dit, self.guide, self.semantic, self.encoder):
            if module is not None:
                module.to(place)
        if self._sampler is not None:
            self._sampler.texture_vae.to(place)
            mean, std = self._sampler.statistics
            self._sampler = replace(self._sampler, statistics=(mean.to(place), std.to(place)))
        return self

    def _load_encoder(self, settings: Settings) -> None:
        self.semantic = open_semantic(settings).load().to(self.device)
        self.encoder = load_visual_encoder(settings.encoder).to(self.device)
        self._require_encoder()

    def _with_texture_vae(self) -> Sampler:
        if self._sampler is None:
            raise UserError(
                "this pipeline has no texture VAE and no latent statistics, so it samples latents only; load it"
                " with a texture_vae, or ask for output='latent'"
            )
        return self._sampler

    def _require_encoder(self) -> None:
        """Raise UserError unless encoder, semantic compressor and transformer belong together."""
        if self.encoder is None or self.semantic is None:
            raise UserError(
                "this pipeline has no encoder to encode with; load it by from_settings(..., encoder=True), or"
                " from_checkpoints(..., semvae=..., sections={'encoder': ...})"
            )
        seen, config = self.semantic.config, self.dit.config
        for what, found, wanted in (
            ("the semantic compressor's channels", seen.channels, config.semantic_channels),
            ("the width of the encoder's tokens", self.encoder.feature_width, seen.feature_width),
            ("the side of the encoder's grid", self.encoder.grid, config.grid),
        ):
            if found != wanted:
                raise UserError(
                    f"cannot encode: {what} {found} should be {wanted}; use the encoder and the semantic compressor"
                    " of the latents that the transformer was trained on"
                )

    def _numbers(self, labels: Labels) -> np.ndarray:
        """Class indices (n,) of what a call may name them by."""
        if isinstance(labels, np.ndarray | Tensor):
            labels = labels.tolist()
        return np.asarray([self._number(label) for label in _listed(labels)])

    def _number(self, label: Any) -> int:
        if isinstance(label, str):
            if label not in self.class_names:
                raise UserError(f"labels: no class is called {label!r}; `class_names` lists them")
            return self.class_names.index(label)
        if isinstance(label, bool) or not isinstance(label, int | np.integer):
            raise UserError(f"labels: {label!r} is no class; give whole numbers or names of classes")
        return int(label)

    def _pixels(self, images: Images) -> Tensor:
        """Images as uint8 (n, 3, H, W) on the CPU, or where they are."""
        if isinstance(images, Tensor):
            expected = (3, self.image_size, self.image_size)
            if images.dtype != torch.uint8 or images.shape[1:] != expected:
                raise UserError(
                    f"images: {images.dtype} of shape {tuple(images.shape)}; expected uint8 of shape"
                    f" (n, {', '.join(map(str, expected))})"
                )
            if len(images):
                return images
        pictures = [] if isinstance(images, Tensor) else _listed(images)
        if not pictures:
            raise UserError("images: an empty list will not do; give one at least")
        for picture in pictures:
            if not isinstance(picture, Image.Image):
                raise UserError(f"images: a {type(picture).__name__} is no PIL image; open it with PIL.Image.open")
        crops = [np.asarray(center_crop(as_rgb(picture), self.image_size)) for picture in pictures]
        return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()


def _sample(defaults: Mapping[str, Any], changes: Any, *allowed: str) -> Sample:
    """Settings of calls; others of the section are refused but for the `allowed`."""
    for name in changes if isinstance(changes, Mapping) else ():
        if name in NOT_OF_A_CALL and name not in allowed:
            raise UserError(f"sampling: {name} has no use here: {NOT_OF_A_CALL[name]}")
    return _section(Sample, {**defaults, **changes} if isinstance(changes, Mapping) else changes, "sampling")


def _section(kind: type[S], values: Any, name: str) -> S:
    if not isinstance(values, Mapping | kind):
        raise UserError(f"{name}: expected settings by their names, found {values!r}")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        found = first_problem(error, kind)
        raise UserError(f"{name}.{found.key}", found.problem, found.remedy) from None


def _listed(one_or_more: Any) -> list[Any]:
    many = isinstance(one_or_more, Sequence) and not isinstance(one_or_more, str)
    return list(one_or_more) if many else [one_or_more]


def _as_noise(noise: Tensor | np.ndarray) -> np.ndarray:
    if isinstance(noise, Tensor):
        noise = noise.detach().cpu()
        noise = (noise.float() if noise.dtype == torch.bfloat16 else noise).numpy()  # NumPy has no bfloat16
    if not isinstance(noise, np.ndarray) or noise.ndim != 4 or noise.dtype.kind != "f":
        found = f"{noise.dtype} of shape {noise.shape}" if isinstance(noise, np.ndarray) else type(noise).__name__
        raise UserError(f"noise: {found} will not do; expected floats of shape (n, C, h, w)")
    return noise


@contextmanager
def tf32(device: torch.device) -> Iterator[None]:
    """On CUDA float32 products as `sfd sample` makes them; afterwards as they were."""
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _read_index(folder: Path, class_name: str) -> dict[str, Any]:
    """`model_index.json`, its components all there."""
    path = folder / INDEX
    if not path.exists():
        raise UserError(f"{folder} holds no pipeline (no {INDEX}); `save_pretrained` writes one")
    index = read_json(path)
    if not isinstance(index, dict) or index.get("_class_name") != class_name:
        raise UserError(f"{path} does not describe a {class_name}; check the path")
    parts = index.get("components")
    if not isinstance(parts, list) or "dit" not in parts or any(part not in COMPONENTS for part in parts):
        raise UserError(f"{path}: components: expected dit and others of {', '.join(COMPONENTS)}, found {parts!r}")
    for part in parts:
        if not (folder / part).is_dir():
            raise UserError(f"{folder} is not whole: {part} is missing; fetch or save it again")
    entry = index.get("encoder")
    if "encoder" in parts and (not isinstance(entry, dict) or sorted(entry) != sorted(ENCODER_ENTRY)):
        raise UserError(f"{path}: encoder: expected {', '.join(ENCODER_ENTRY)}, found {entry!r}")
    return index


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

"""The parts of a pipeline: from settings, from checkpoints by themselves, or from a saved pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sfd_cli.config import EDITS, Encoder, Sample, Section, SemVAE, Settings, validate_settings
from sfd_cli.errors import UserError
from sfd_cli.formats.files import read_file
from sfd_cli.formats.format import Hints
from sfd_cli.formats.model_folder import ONLY_WEIGHTS, compressors, texture_compressors, type_of
from sfd_cli.networks.lightning_dit import LightningDiT
from sfd_cli.networks.texture_vae import TextureVAE
from sfd_cli.networks.visual_encoder import VisualEncoder
from sfd_cli.pipeline.arguments import as_dtype, as_sample, as_section
from sfd_cli.pipeline.hub import REPOSITORY_NAME
from sfd_cli.pipeline.layout import INDEX, SavedPipeline, read_saved
from sfd_cli.pipeline.models import EncodingModels, SamplingModels
from sfd_cli.pipeline.sampler import Sampler
from sfd_cli.weights.model import LoadedModel, Model
from sfd_cli.weights.models import (
    SemanticCompressor,
    TextureCompressor,
    open_model,
    space_of,
)
from sfd_cli.weights.visual_encoders import load_visual_encoder

SECTIONS: dict[str, type[Section] | None] = {"foreign": None, "semvae": SemVAE, "encoder": Encoder}
"""What files do not tell; None: validated with all settings."""


class Parts(NamedTuple):
    """All networks of a pipeline, on one device.

    Attributes:
        sampler: makes latents, and images where it has a texture VAE.
        semantic: the semantic compressor, for encoding.
        encoder: the visual encoder, for encoding.
    """

    sampler: Sampler
    semantic: SemanticCompressor | None = None
    encoder: VisualEncoder | None = None


def from_settings(settings: Settings, device: torch.device, images: bool, encoder: bool) -> Parts:
    """The models of `settings.paths`.

    Args:
        settings: where they are; the section `sample` is the sampler's.
        device: where they go.
        images: whether images are wanted, or latents only.
        encoder: also load what encoding needs, if there are semantics.

    Raises:
        UserError: a model is missing, or models and settings do not fit together.
    """
    sampler = SamplingModels.open(settings, images).load(settings.sample.without_edits(), device)
    if not (encoder and sampler.space.semantic):
        return Parts(sampler)
    return Parts(sampler, *EncodingModels.open(settings).load(sampler.space, device))


def from_checkpoints(
    sources: Mapping[str, str | Path | None],
    sections: Mapping[str, Any],
    sampling: Mapping[str, Any],
    device: torch.device,
) -> Parts:
    """Models by themselves.

    Args:
        sources: of dit, texture_vae, guide and semvae; None where there is none.
        sections: what the files do not tell, see `SECTIONS`.
        sampling: settings of the section `sample`.
        device: where the models go.

    Raises:
        UserError: a model is missing or damaged, or they do not fit together.
    """
    unknown = sorted(map(str, sections.keys() - SECTIONS.keys()))
    if unknown:
        raise UserError("sections", f"unknown: {', '.join(unknown)}", f"expected are {', '.join(SECTIONS)}")
    encodes = sources.get("semvae") is not None
    if ("encoder" in sections) != encodes or ("semvae" in sections and not encodes):
        raise UserError("semvae", "encoding needs it and the section 'encoder' of its encoder", "give both or neither")
    for key in EDITS:
        if key in sampling:
            raise UserError(f"sample.{key}", "is of the pictures of a call", "give it there")
    paths = {name: source for name, source in sources.items() if source is not None}
    sample = as_sample({"guidance": "autoguidance"} if "guide" in paths else {}, sampling, "weights", "compile")
    plain = {"paths": paths, "sample": sample, "foreign": sections.get("foreign", {})}
    settings = validate_settings(plain, "from_checkpoints")
    # By themselves: what else a project's sections must agree with, such as the images' size, is not known here.
    alone = {
        name: as_section(kind, sections[name], name) for name, kind in SECTIONS.items() if kind and name in sections
    }
    parts = from_settings(settings.model_copy(update=alone), device, "texture_vae" in paths, encodes)
    if encodes and parts.semantic is None:
        raise UserError("semvae", f"{paths['dit']} has no semantic channels", "leave it out")
    return parts


@dataclass(frozen=True)
class Saved:
    """A pipeline that `saving.save` wrote; its weights are not read yet.

    Attributes:
        contents: what its folder has.
        models: those that sampling needs.
        sample: the defaults of its calls.
    """

    contents: SavedPipeline
    models: SamplingModels
    sample: Sample


def open_saved(source: str | Path, class_name: str, revision: str | None = None) -> Saved:
    """The pipeline in a local folder or in a repository of the Hugging Face hub.

    Raises:
        UserError: it is neither, cannot be fetched, or is damaged or incomplete.
    """
    contents = read_saved(_local(source, revision), class_name)
    parts, sample = contents.parts, as_sample({}, contents.sample)
    dit = open_model(parts["dit"], LightningDiT)
    models = SamplingModels(
        dit,
        open_model(parts["guide"], LightningDiT) if "guide" in parts else None,
        _texture_vae(parts["texture_vae"], space_of(dit).texture) if "texture_vae" in parts else None,
    )
    return Saved(contents, models, sample)


def from_folder(source: str | Path, class_name: str, device: torch.device, revision: str | None) -> Parts:
    """The components that `saving.save` wrote to a local folder or a repository of the Hugging Face hub.

    Raises:
        UserError: it is neither, cannot be fetched, or is damaged or incomplete.
    """
    saved = open_saved(source, class_name, revision)
    contents, semantic, encoder = saved.contents, None, None
    sampler, parts = saved.models.load(saved.sample, device), contents.parts
    if "semantic" in parts:
        opened: Model[SemanticCompressor] = open_model(parts["semantic"], tuple(compressors()))
        semantic = opened.load().to(device)
    if "encoder" in parts:
        entry = dict(contents.encoder) | {"weights": str(parts["encoder"])}
        encoder = load_visual_encoder(as_section(Encoder, entry, f"{contents.folder / INDEX}: encoder")).to(device)
    return Parts(sampler, semantic, encoder)


def held_in(parts: Parts, dtype: torch.dtype | None) -> Parts:
    """The same parts with the transformers' weights in `dtype`, in place; None leaves them in float32.

    Raises:
        UserError: a dtype that they cannot compute in.
    """
    if dtype is not None:
        as_dtype(dtype)
        for network in (parts.sampler.dit, parts.sampler.guide):
            if network is not None:
                network.to(dtype)
    return parts


def _texture_vae(folder: Path, channels: int) -> Model[TextureCompressor]:
    """A saved texture compressor: a model folder, or an AutoencoderKL of diffusers, read where it lies."""
    if type_of(folder) is not None:
        return open_model(folder, tuple(texture_compressors()))
    parts = read_file(folder, Hints(texture_channels=channels), TextureVAE.__name__)
    network = TextureVAE(parts.config)
    network.load_state_dict(parts.tensors)
    return LoadedModel(str(folder), folder, ONLY_WEIGHTS, network.eval().requires_grad_(False))


def _local(source: str | Path, revision: str | None) -> Path:
    """The folder itself, or the hub's repository of that name in the hub's own cache."""
    if Path(source).is_dir():
        return Path(source)
    if not REPOSITORY_NAME.fullmatch(str(source)):
        raise UserError(source, "is no folder, and no name of a hub repository", "give one, or owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=["*.json", "*.safetensors"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        said = " ".join(str(error).split())[:300]
        raise UserError(source, f"is no folder here, and could not be fetched from the hub ({said})") from None

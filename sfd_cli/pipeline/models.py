"""The models that sampling needs: found, identified, and loaded as a `Sampler`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch

from sfd_cli.artifacts.fingerprints import finished_model
from sfd_cli.config import Encoder, Sample, Settings
from sfd_cli.diffusion.latents import LatentSpace
from sfd_cli.errors import UserError
from sfd_cli.laws import DEFAULT_LAW, law_of
from sfd_cli.networks.compilation import can_compile
from sfd_cli.networks.lightning_dit import LightningDiT
from sfd_cli.networks.visual_encoder import VisualEncoder
from sfd_cli.pipeline.arguments import as_section
from sfd_cli.pipeline.image_encoder import require_encoders
from sfd_cli.pipeline.sampler import Sampler
from sfd_cli.pipeline.together import STATISTICS_REMEDY
from sfd_cli.weights.models import (
    Model,
    SemanticCompressor,
    TextureCompressor,
    conditions_of,
    open_dit,
    open_semantic,
    open_texture_vae,
    space_of,
)
from sfd_cli.weights.visual_encoders import encoder_fingerprint, load_visual_encoder


@dataclass(frozen=True)
class SamplingModels:
    """Models that are there; their weights are not read yet.

    Attributes:
        dit: the diffusion transformer.
        guide: the weaker model, for AutoGuidance.
        texture_vae: decodes the latents; None where latents are all that is wanted.
    """

    dit: Model[LightningDiT]
    guide: Model[LightningDiT] | None = None
    texture_vae: Model[TextureCompressor] | None = None

    @classmethod
    def open(cls, settings: Settings, images: bool = True) -> Self:
        """The models of `settings.paths`, the guide where `sample.guidance` asks for it.

        Args:
            settings: the sections `paths`, `sample`, `foreign` and `texture_vae` are read.
            images: whether images are wanted; without, neither texture VAE nor latent statistics are needed.

        Raises:
            UserError: one is missing, damaged or something else.
        """
        dit = open_dit(settings)
        guide = open_dit(settings, "guide") if settings.sample.guidance == "autoguidance" else None
        texture_vae = open_texture_vae(settings, space_of(dit).texture) if images else None
        return cls(dit, guide, texture_vae)

    @property
    def trained_law(self) -> dict[str, Any] | None:
        """The law that the transformer was trained with, as `laws.law_of` gives it, where its folder says so.

        Raises:
            UserError: the folder says something that is no law.
        """
        facts, config = self.dit.facts, self.dit.config
        said = facts.get("schedule", {"delta_t": facts["delta_t"]} if "delta_t" in facts else None)
        if said is None:
            only = config.time_embedding == "single" or config.semantic_channels == 0
            return {"schedule": DEFAULT_LAW, "delta_t": 0.0} if only else None
        try:
            return law_of(as_section(Sample, said, "schedule"))
        except UserError as error:
            raise UserError(self.dit.source, f"{error.subject} {error.problem}", "fetch or train it again") from None

    def fingerprints(self) -> dict[str, str]:
        """Of each model, by its role.

        Raises:
            UserError: a stage that makes one has not finished it, or there are no such weights.
        """
        made_by = (
            ("dit", self.dit, "sfd train"),
            ("texture_vae", self.texture_vae, "sfd train-texture-vae"),
            ("guide", self.guide, "sfd train-guide"),
        )
        return {role: finished_model(model, command) for role, model, command in made_by if model is not None}

    def load(self, sample: Sample, device: torch.device) -> Sampler:
        """Read the weights and put the models together; compiled where `sample.compile` says so.

        Raises:
            UserError: a model is damaged, or they do not belong together.
        """
        self._require_together()
        sampler = Sampler(
            dit=self.dit.load().to(device),
            sample=sample,
            space=space_of(self.dit),
            conditions=conditions_of(self.dit),
            guide=None if self.guide is None else self.guide.load().to(device),
            texture_vae=None if self.texture_vae is None else self.texture_vae.load().to(device),
            trained_law=self.trained_law,
            name=self.dit.source,
            guide_name=None if self.guide is None else self.guide.source,
            vae_name="texture_vae" if self.texture_vae is None else self.texture_vae.source,
        )
        if sample.compile is True and can_compile(device):
            for network in (sampler.dit, sampler.guide):
                if network is not None:
                    network.compile(dynamic=False)  # batches have one shape, or two with classifier-free guidance
        return sampler

    def _require_together(self) -> None:
        """Raise UserError where the models are not of the same latents and classes."""
        dit, guide, texture_vae = self.dit, self.guide, self.texture_vae
        if guide is not None:
            classes, theirs = len(conditions_of(dit)), len(conditions_of(guide))
            why = space_of(dit).difference(space_of(guide))
            if why is None and classes != theirs:
                why = f"num_classes {theirs} instead of {classes}"
            if why is not None:
                problem = f"cannot guide {dit.source}: it has {why}"
                raise UserError(guide.source, problem, "train both on the same latents")
        known, channels = (dit.facts.get("statistics") or {}).get("mean", ()), space_of(dit).channels
        if texture_vae is not None and known and len(known) != channels:
            problem = f"has latent statistics for {len(known)} channels, but makes {channels} channels"
            raise UserError(dit.source, problem, STATISTICS_REMEDY)
        trained_on = dit.facts.get("texture_vae")
        if texture_vae is not None and trained_on is not None and trained_on != texture_vae.fingerprint:
            problem = f"was trained on latents of another texture VAE than {texture_vae.source}"
            raise UserError(dit.source, problem, "run `sfd encode-latents` and `sfd train` again")


@dataclass(frozen=True)
class EncodingModels:
    """What makes the semantic latents of images: models that are there; their weights are not read yet.

    Attributes:
        semantic: makes the latents of patch tokens.
        encoder: the section of the visual encoder, which makes the patch tokens.
    """

    semantic: Model[SemanticCompressor]
    encoder: Encoder

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Those of the settings.

        Raises:
            UserError: the semantic compressor is missing, damaged or something else.
        """
        return cls(open_semantic(settings), settings.encoder)

    def fingerprints(self) -> dict[str, str]:
        """Of each, by its role.

        Raises:
            UserError: a stage has not finished the compressor, or the encoder's weights cannot be had.
        """
        semantic = finished_model(self.semantic, "sfd train-semvae")
        return {"semvae": semantic, "encoder": encoder_fingerprint(self.encoder)}

    def load(self, space: LatentSpace, device: torch.device) -> tuple[SemanticCompressor, VisualEncoder]:
        """Compressor and encoder of the semantic latents of `space`.

        Raises:
            UserError: one is damaged, or they make other latents.
        """
        semantic, visual = self.semantic.load().to(device), load_visual_encoder(self.encoder).to(device)
        require_encoders(space, semantic, visual)
        return semantic, visual

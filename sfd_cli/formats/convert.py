"""Foreign checkpoints as our configurations and state dicts, and back: the converters of every kind of model."""

from sfd_cli.formats.dinov2 import VisualEncoderConfig, visual_encoder_from_release
from sfd_cli.formats.reference_dit import dit_from_reference, dit_tables_from_reference, dit_to_reference
from sfd_cli.formats.reference_semantic_vae import semantic_vae_from_reference, semantic_vae_to_reference
from sfd_cli.formats.reference_statistics import (
    LatentStatistics,
    load_statistics,
    statistics_from_reference,
    statistics_to_reference,
)
from sfd_cli.formats.texture_vae import (
    texture_vae_from_diffusers,
    texture_vae_from_ldm,
    texture_vae_to_ldm,
)

__all__ = [
    "LatentStatistics",
    "VisualEncoderConfig",
    "dit_from_reference",
    "dit_tables_from_reference",
    "dit_to_reference",
    "load_statistics",
    "semantic_vae_from_reference",
    "semantic_vae_to_reference",
    "statistics_from_reference",
    "statistics_to_reference",
    "texture_vae_from_diffusers",
    "texture_vae_from_ldm",
    "texture_vae_to_ldm",
    "visual_encoder_from_release",
]

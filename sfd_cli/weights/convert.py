"""Foreign checkpoints as our configurations and state dicts: the converters of every kind of model."""

from sfd_cli.weights.convert_dit import dit_from_reference, dit_to_reference
from sfd_cli.weights.convert_semantic_vae import semantic_vae_from_reference
from sfd_cli.weights.convert_texture_vae import texture_vae_from_diffusers, texture_vae_from_ldm

__all__ = [
    "dit_from_reference",
    "dit_to_reference",
    "semantic_vae_from_reference",
    "texture_vae_from_diffusers",
    "texture_vae_from_ldm",
]

"""Images as normalised composite latents: the frozen networks, in the opposite direction of sampling."""

from __future__ import annotations

import torch
from torch import Tensor

from sfd_cli.diffusion.latents import LatentSpace, Streams
from sfd_cli.errors import UserError
from sfd_cli.networks.gaussian import draw
from sfd_cli.networks.visual_encoder import VisualEncoder
from sfd_cli.pipeline.encoding import posteriors
from sfd_cli.weights.models import SemanticCompressor, TextureCompressor

IMAGES_AT_ONCE = 16


@torch.inference_mode()
def encode_images(
    pixels: Tensor,
    space: LatentSpace,
    texture_vae: TextureCompressor,
    semantic: SemanticCompressor | None,
    encoder: VisualEncoder | None,
    seed: int | None = None,
) -> Tensor:
    """Normalised composite latents (n, C, h, w) of uint8 images (n, 3, H, W).

    Args:
        pixels: the images.
        space: layout and scale of the latents.
        texture_vae: makes the texture latent.
        semantic: makes the semantic latent of patch tokens; not needed where the space has no semantic channels.
        encoder: makes the patch tokens.
        seed: draws a sample of the posterior; without it the latent is the posterior's mean.

    Raises:
        UserError: a network is missing, or they do not make latents of this space.
    """
    require_encoders(space, semantic, encoder)
    if not space.semantic:
        semantic = encoder = None
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    device, latents = next(iter(texture_vae.state_dict().values())).device, []
    for part in pixels.split(IMAGES_AT_ONCE):
        part, streams = part.to(device), []
        tokens = None if encoder is None else encoder(part.float() / 255)[0]
        for mean, logvar in posteriors(texture_vae, semantic, part, tokens).values():
            if generator is not None:
                mean = draw(mean, logvar, torch.randn(mean.shape, generator=generator).to(device))
            streams.append(mean)
        latents.append(space.join(Streams(streams[0], streams[1] if space.semantic else part[:, :0])))
    return torch.cat(latents)


def require_encoders(space: LatentSpace, semantic: SemanticCompressor | None, encoder: VisualEncoder | None) -> None:
    """Check that encoder and semantic compressor make the semantic latents of a space, where it has any.

    Raises:
        UserError: one is missing, or they make other latents.
    """
    if not space.semantic:
        return
    if encoder is None or semantic is None:
        raise UserError(
            "encoder",
            "there is no encoder to encode with",
            "load it by from_settings(..., encoder=True), or from_checkpoints(..., semvae=..., sections={'encoder':"
            " ...})",
        )
    seen = semantic.config
    for what, found, wanted in (
        ("channels of the semantic compressor", seen.channels, space.semantic),
        ("width of the encoder's tokens", encoder.feature_width, seen.feature_width),
        ("side of the encoder's grid", encoder.grid, space.grid),
    ):
        if found != wanted:
            problem = f"cannot encode: {what}: {found} instead of {wanted}"
            raise UserError("encoder", problem, "use those of the latents that the transformer was trained on")

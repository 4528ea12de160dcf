"""Images as normalised composite latents: the frozen networks, in the opposite direction of sampling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfd_cli.diffusion.latents import LatentSpace, Streams
from sfd_cli.errors import UserError
from sfd_cli.networks.gaussian import draw
from sfd_cli.networks.texture_vae import TextureVAE
from sfd_cli.networks.visual_encoder import VisualEncoder
from sfd_cli.pipeline.encoding import CompositeEncoder
from sfd_cli.weights.models import SemanticCompressor

IMAGES_AT_ONCE = 16


@dataclass(frozen=True)
class ImageEncoder:
    """The networks that make a composite latent of an image, on one device.

    Attributes:
        space: layout and scale of the latents.
        texture_vae: makes the texture latent.
        semantic: makes the semantic latent of patch tokens; not needed where the space has no semantic channels.
        encoder: makes the patch tokens.

    Raises:
        UserError: one is missing, or they do not make latents of this space.
    """

    space: LatentSpace
    texture_vae: TextureVAE
    semantic: SemanticCompressor | None
    encoder: VisualEncoder | None

    def __post_init__(self) -> None:
        require_encoders(self.space, self.semantic, self.encoder)

    @torch.inference_mode()
    def encode(self, pixels: Tensor, seed: int | None = None) -> Tensor:
        """Normalised composite latents (n, C, h, w) of uint8 images (n, 3, H, W).

        `seed` draws a sample of the posterior; without it the posterior's mean is given.
        """
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return torch.cat([self._encode(part, generator) for part in pixels.split(IMAGES_AT_ONCE)])

    def _encode(self, pixels: Tensor, generator: torch.Generator | None) -> Tensor:
        device = next(self.texture_vae.parameters()).device
        pixels = pixels.to(device)
        with_semantics = bool(self.space.semantic)
        tokens = self.encoder(pixels.float() / 255)[0] if with_semantics and self.encoder is not None else None
        composite = CompositeEncoder(self.texture_vae, self.semantic if with_semantics else None)
        streams = []
        for mean, logvar in composite.posteriors(pixels, tokens).values():
            if generator is not None:
                mean = draw(mean, logvar, torch.randn(mean.shape, generator=generator).to(device))
            streams.append(mean)
        texture, semantic = streams if with_semantics else (*streams, pixels[:, :0])
        return self.space.join(Streams(texture, semantic))


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
            raise UserError(
                "encoder",
                f"cannot encode: {what}: {found} instead of {wanted}",
                "use the encoder and the semantic compressor of the latents that the transformer was trained on",
            )

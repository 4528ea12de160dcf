"""Vision transformers whose features are compared: DINOv2's class token, and CLIP's embedding.

Each is fed as the code does that its score is known from: what resizes an image moves a distance by more than rounding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import InterpolationMode, resize

from sfd_cli.config import Encoder
from sfd_cli.errors import UserError
from sfd_cli.evaluation.extractor import EMBEDDING, Extractor
from sfd_cli.formats.torch_files import read_weights_file
from sfd_cli.networks.visual_encoder import VisualEncoder
from sfd_cli.weights.visual_encoders import load_visual_encoder

EDM2_ENCODER = Encoder(name="dinov2_vitl14", image_size=224)
"""The encoder of FD-DINOv2, as dgm-eval (Stein et al. 2023) and EDM2 have it."""
CLIP = "vit_large_patch14_clip_quickgelu_336"
"""timm's name of the encoder of CMMD."""


def class_token_extractor(config: Encoder, device: torch.device) -> Extractor:
    """The class token after the final norm of a visual encoder, which sees images as it does for `extract-features`."""
    encoder = load_visual_encoder(config).to(device)
    return Extractor.of(
        config.short_name, encoder.feature_width, device, lambda images: encoder(images.float() / 255)[1]
    )


def edm2_extractor(encoder: VisualEncoder, device: torch.device) -> Extractor:
    """The class token of DINOv2 as EDM2 (`calculate_metrics.py`) takes it: resized bicubic, antialiased, unrounded."""
    encoder = encoder.to(device)
    size = (encoder.image_size, encoder.image_size)

    def compute(images: Tensor) -> Tensor:
        resized = F.interpolate(images.float(), size=size, mode="bicubic", antialias=True) / 255
        return encoder(resized)[1]

    return Extractor.of("dinov2", encoder.feature_width, device, compute)


def clip_extractor(weights: Path, device: torch.device, name: str = CLIP, **architecture: Any) -> Extractor:
    """CLIP's image embedding of unit length, as CMMD (Jayasumana et al. 2024) takes it.

    Images are resized to bytes, bicubic and antialiased, as Pillow does, of which PyTorch's is within one level.

    Args:
        weights: timm's file for CLIP ViT-L/14 at 336 px.
        device: where it computes.
        name: timm's name of the network.
        **architecture: changes to it, handed to timm.

    Raises:
        UserError: `weights` are of another network.
    """
    import timm

    published = timm.get_pretrained_cfg(f"{name}.openai")
    mean, std = (torch.tensor(found, device=device).view(3, 1, 1) for found in (published.mean, published.std))
    width = published.num_classes
    network = timm.create_model(name, pretrained=False, num_classes=width, **architecture)
    try:
        network.load_state_dict(read_weights_file(weights))
    except RuntimeError as error:
        raise UserError(
            weights, f"does not fit {name} ({' '.join(str(error).split())[:200]})", "fetch it again"
        ) from None
    network.to(device).eval().requires_grad_(False)
    size = list(network.patch_embed.img_size)

    def compute(images: Tensor) -> dict[str, Tensor]:
        resized = resize(images, size, InterpolationMode.BICUBIC, antialias=True)
        return {EMBEDDING: F.normalize(network((resized.float() / 255 - mean) / std), dim=-1)}

    return Extractor("clip", {EMBEDDING: width}, device, compute)

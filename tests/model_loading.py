"""Networks and facts of model folders, as tests look at them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sfd_cli.networks.lightning_dit import LightningDiT
from sfd_cli.networks.semantic_pca import SemanticPCA
from sfd_cli.networks.semantic_vae import SemanticVAE
from sfd_cli.networks.texture_pca import TexturePCA
from sfd_cli.networks.texture_vae import TextureVAE
from sfd_cli.weights.models import SemanticCompressor, TextureCompressor, open_model


def load_dit(folder: Path, weights: str = "ema") -> tuple[LightningDiT, dict[str, Any]]:
    model = open_model(folder, LightningDiT, weights=weights)
    return model.load(), model.facts


def load_texture_vae(folder: Path) -> tuple[TextureCompressor, dict[str, Any]]:
    model = open_model(folder, (TextureVAE, TexturePCA))
    return model.load(), model.facts


def load_semantic(folder: Path) -> tuple[SemanticCompressor, dict[str, Any]]:
    model = open_model(folder, (SemanticVAE, SemanticPCA))
    return model.load(), model.facts


load_semantic_vae = load_semantic

"""A pipeline in miniature: random networks of every role, for tests of the Python object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from model_loading import load_dit
from tiny_project import SEMANTIC, TEXTURE, tiny_settings, write_models

from sfd_cli.config import Settings
from sfd_cli.formats.model_folder import save_model
from sfd_cli.networks.semantic_vae import SemanticVAE, SemanticVAEConfig

CHANNELS = TEXTURE + SEMANTIC
WIDTH = 192  # of the tokens of vit_tiny


def project(root: Path, **sample: Any) -> Settings:
    encoder = {"name": "vit_tiny_patch16_224", "weights": "random", "image_size": 32}
    settings = tiny_settings(root, sample=sample, encoder=encoder, semvae={"channels": SEMANTIC})
    write_models(settings)
    torch.manual_seed(3)
    config = SemanticVAEConfig(WIDTH, SEMANTIC, width=16, depth=1, heads=2)
    save_model(settings.paths.semvae, "SemanticVAE", config, {"model": SemanticVAE(config).state_dict()}, {})
    network, extra = load_dit(settings.paths.dit)
    halves = {name: tensor / 2 for name, tensor in network.state_dict().items()}
    save_model(settings.paths.guide, "LightningDiT", network.config, {"ema": halves}, extra)
    return settings

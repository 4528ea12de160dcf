"""What `sfd train` reads, in miniature: random latents and compressors, and settings that train in a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from sfd_cli.config import Settings, load_settings
from sfd_cli.data.shards import StoreWriter
from sfd_cli.data.store import Field
from sfd_cli.files import write_json
from sfd_cli.formats.model_folder import save_model
from sfd_cli.networks.semantic_vae import SemanticVAE, SemanticVAEConfig
from sfd_cli.networks.texture_vae import TextureVAE, TextureVAEConfig

COUNT, GRID, TEXTURE, SEMANTIC, WIDTH = 20, 2, 3, 2, 6
CLASSES = ["circles", "squares", "triangles"]
NETWORK: dict[str, Any] = {
    "width": 16,
    "depth": 2,
    "heads": 2,
    "repa_width": 8,
    "steps": 6,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "ema_decay": 0.8,
    "checkpoint_every": 4,
    "log_every": 2,
    "sample_every": 0,
}
PARAMS: dict[str, Any] = {
    "runtime": {"device": "cpu"},
    "images": {"size": 16},
    "encoder": {"name": "dinov2_vits14", "weights": "random", "image_size": 28},
    "texture_vae": {"channels": TEXTURE, "block_channels": [32, 32, 32, 32]},
    "dit": NETWORK,
    "guide": NETWORK | {"width": 8, "depth": 1, "repa": "none", "steps": 3},
}


def project(root: Path) -> None:
    """Artifacts that `sfd train` reads, random; and params.yaml."""
    root.mkdir(parents=True)
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    write_latents(root / "data" / "latents")
    torch.manual_seed(0)
    semantic = SemanticVAEConfig(WIDTH, SEMANTIC, width=8, depth=1, heads=2)
    save_model(root / "models" / "semvae", "SemanticVAE", semantic, {"model": SemanticVAE(semantic).state_dict()}, {})
    texture = TextureVAEConfig(TEXTURE, (32, 32, 32, 32))
    save_model(root / "models" / "texture_vae", "TextureVAE", texture, {"model": TextureVAE(texture).state_dict()}, {})


def write_latents(
    folder: Path,
    features: bool = True,
    flips: int = 2,
    classes: Sequence[str] = CLASSES,
    grid: int = GRID,
    channels: tuple[int, int] = (TEXTURE, SEMANTIC),
    width: int = WIDTH,
    std: float = 3.0,
) -> None:
    """Twenty random images in turn of these classes; `channels` are of textures and semantics, `std` is the index's."""
    texture, semantic = channels
    fields = {"texture": Field((flips, texture, grid, grid)), "semantic": Field((flips, semantic, grid, grid))}
    if features:
        fields["features"] = Field((flips, grid**2, width))
    rng = np.random.default_rng(0)
    writer = StoreWriter(folder, fields, COUNT, 8, "latents", {"image_size": 16})
    for shard in range(writer.shard_count):
        rows = len(writer.rows(shard))
        writer.write_shard(
            shard, {name: rng.normal(1, 3, (rows, *f.shape)).astype(np.float16) for name, f in fields.items()}
        )
    statistics = {"mean": np.full(texture + semantic, 1.0), "std": np.full(texture + semantic, std)}
    files = [f"{index}.png" for index in range(COUNT)]
    writer.finish([index % len(classes) for index in range(COUNT)], files, range(COUNT), classes, statistics)
    inputs = {"texture_vae": "t"}
    write_json(folder / "settings.json", {"fingerprint": "latents", "complete": True, "settings": {}, "inputs": inputs})


def settings_with(**dit: Any) -> Settings:
    return load_settings(Path("params.yaml"), {"dit": dit})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

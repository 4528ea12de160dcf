"""A finished project in miniature: images, tiny random networks and samples, for the stages that look at them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sfd_cli.config import Settings
from sfd_cli.data.images import ImageManifest
from sfd_cli.data.shards import StoreWriter
from sfd_cli.data.store import Field
from sfd_cli.files import write_json
from sfd_cli.formats.model_folder import save_model
from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig
from sfd_cli.networks.texture_vae import TextureVAE, TextureVAEConfig

SIDE, TEXTURE, SEMANTIC = 16, 4, 3
CLASSES = ["circles", "squares", "triangles"]


def tiny_settings(root: Path, **sections: dict[str, Any]) -> Settings:
    """Settings whose artifacts all lie under `root`; the encoders are tiny random ones."""
    names = ("images", "features", "semvae", "texture_vae", "latents", "probe", "schedule", "dit", "guide", "samples")
    names += ("metrics", "reports")
    encoder = {"name": "dinov2_vits14", "weights": "random", "image_size": 28}
    values: dict[str, dict[str, Any]] = {
        "runtime": {"device": "cpu", "workers": 2},
        "paths": {name: root / name for name in names},
        "images": {"size": SIDE},
        "encoder": encoder,
        "texture_vae": {"channels": TEXTURE, "block_channels": [32, 32, 32, 32]},
        "fid": {"encoder": encoder, "inception": "none"},
        "sample": {"num_images": 12, "steps": 4, "solver": "euler", "batch_size": 8},
        "report": {"grid_images": 9, "trajectory_images": 2},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return Settings.model_validate(values)


def random_images(folder: Path, names: list[str], seed: int, brightness: float = 1.0) -> None:
    """Smooth random PNGs of SIDE x SIDE pixels."""
    generator = np.random.default_rng(seed)
    for name in names:
        coarse = (generator.random((4, 4, 3)) * 255 * brightness).astype(np.uint8)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path)


def write_training_images(settings: Settings, count: int = 24) -> None:
    """An image set with a manifest, as `sfd prepare-data` leaves it."""
    folder = settings.paths.images
    files = [f"{CLASSES[index % 3]}/{index:03d}.png" for index in range(count)]
    random_images(folder, files, seed=1)
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}
    ImageManifest.of(folder, digests).save(folder, root=".")


def write_features(settings: Settings, count: int = 40) -> None:
    """Patch tokens that live in three dimensions, so that three channels can hold them."""
    generator = np.random.default_rng(0)
    basis = generator.normal(size=(3, 12))
    flips = settings.images.flips
    tokens = (generator.normal(size=(count, 2, 4, 3)) @ basis).astype(np.float16)[:, :flips]
    folder = settings.paths.features
    writer = StoreWriter(folder, {"tokens": Field((flips, 4, 12))}, count, 16, "features")
    for shard in range(writer.shard_count):
        rows = writer.rows(shard)
        writer.write_shard(shard, {"tokens": tokens[rows.start : rows.stop]})
    writer.finish([0] * count, [f"a/{row}.png" for row in range(count)], range(count), ["a"])
    write_json(folder / "settings.json", {"fingerprint": "features", "complete": True})


def write_models(settings: Settings) -> None:
    """A random diffusion transformer (whose velocity is not zero) and a random texture VAE."""
    torch.manual_seed(0)
    config = LightningDiTConfig(2, TEXTURE + SEMANTIC, len(CLASSES), SEMANTIC, width=32, depth=1, heads=2)
    network = LightningDiT(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    channels = TEXTURE + SEMANTIC
    extra = {
        "statistics": {"mean": [0.1] * channels, "std": [0.9] * channels},
        "delta_t": 0.3,
        "classes": CLASSES,
        "image_size": SIDE,
    }
    save_model(
        settings.paths.dit, "LightningDiT", config, {"model": network.state_dict(), "ema": network.state_dict()}, extra
    )
    vae_config = TextureVAEConfig(TEXTURE, (32, 32, 32, 32))
    save_model(settings.paths.texture_vae, "TextureVAE", vae_config, {"model": TextureVAE(vae_config).state_dict()}, {})
    for folder in (settings.paths.dit, settings.paths.texture_vae):
        write_json(
            folder / "settings.json", {"fingerprint": folder.name, "complete": True, "settings": {}, "inputs": {}}
        )

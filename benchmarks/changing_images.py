"""What does one more image cost, where features and latents of all others are there?

The stages up to `sfd encode-latents` on an ImageFolder of generated JPEGs, from nothing and after one image was added
in front of all others, turn by turn. Both ways leave the same bytes, which is checked in the run. A ViT-S at 112 px
with random weights, a small semantic VAE and texture VAE. Times are of the stages, without the start of Python.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Timing, arguments, ratios, save, table
from PIL import Image

from sfd_cli.config import Settings
from sfd_cli.formats.model_folder import save_model
from sfd_cli.networks.semantic_vae import SemanticVAE, SemanticVAEConfig
from sfd_cli.networks.texture_vae import TextureVAE, TextureVAEConfig
from sfd_cli.stages import encode_latents, extract_features, prepare_data

STAGES: dict[str, Callable[[Settings], object]] = {
    "prepare-data": prepare_data.run,
    "extract-features": extract_features.run,
    "encode-latents": encode_latents.run,
}
STORES = {"extract-features": Path("data/features"), "encode-latents": Path("data/latents")}
SIDE, GRID = 128, 8


def main() -> None:
    """Make images and networks, time both ways, check that their bytes are the same, print, save."""
    options = parse()
    folder, here = Path(tempfile.mkdtemp()), Path.cwd()
    os.chdir(folder)
    started = time.perf_counter()
    try:
        rows = compare(options)
    finally:
        os.chdir(here)
        shutil.rmtree(folder)
    table([{key: value for key, value in row.items() if key != "seconds"} for row in rows])
    print(f"\n{time.perf_counter() - started:.0f} s")
    save("changing_images", options, {"timings": rows})


def parse() -> argparse.Namespace:
    """Command line."""
    parser = arguments(__doc__)
    parser.set_defaults(repetitions=3)
    parser.add_argument("--images", type=int, default=100, help="images before one is added [100]")
    parser.add_argument("--batch", type=int, default=16, help="images of a forward pass [16]")
    return parser.parse_args()


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the table: every stage both ways."""
    given = settings(options)
    write_models()
    seconds: dict[tuple[str, str], list[float]] = {}
    for number in range(options.images):
        write_image(f"class-{number % 4}", number)
    for turn in range(options.repetitions):
        ways = {}
        for way in ("one added", "from nothing"):
            shutil.rmtree("data", ignore_errors=True)
            if way == "one added":
                run(given)
                added = write_image("added", options.images + turn)
            for stage, taken in run(given).items():
                seconds.setdefault((stage, way), []).append(taken)
            ways[way] = contents()
        added.unlink()
        if ways["one added"] != ways["from nothing"]:
            raise AssertionError("the two ways wrote different files")
    print("both ways write the same bytes", flush=True)
    return [row(options, stage, seconds) for stage in (*STAGES, "all")]


def row(options: argparse.Namespace, stage: str, seconds: dict[tuple[str, str], list[float]]) -> dict[str, Any]:
    """A row of the table, of a stage or of all together."""
    stages = STAGES if stage == "all" else [stage]
    nothing, added = (
        Timing(way, np.sum([seconds[one, way] for one in stages], axis=0).tolist())
        for way in ("from nothing", "one added")
    )
    ratio = ratios(nothing, added)
    return {
        "stage": stage,
        "images": options.images,
        "from nothing, s": nothing.median,
        "one added, s": added.median,
        "times faster": ratio["median"],
        "quartiles": f"{ratio['low']:.3g}-{ratio['high']:.3g}",
        "seconds": {"from nothing": nothing.seconds, "one added": added.seconds},
    }


def run(given: Settings) -> dict[str, float]:
    """Seconds of every stage."""
    taken = {}
    for name, stage in STAGES.items():
        started = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()):
            stage(given)
        taken[name] = time.perf_counter() - started
    return taken


def contents() -> dict[str, bytes]:
    """Every file of both stores, records included."""
    return {f"{folder}/{path.name}": path.read_bytes() for folder in STORES.values() for path in folder.iterdir()}


def write_image(name: str, number: int) -> Path:
    """A JPEG that is neither flat nor noise."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    path = Path("mine", name, f"{number:05d}.jpg")
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse.resize((200, 180), Image.Resampling.BICUBIC).save(path, quality=90)
    return path


def write_models() -> None:
    """Random compressors."""
    torch.manual_seed(0)
    semantic = SemanticVAEConfig(384, channels=16, width=64, depth=1, heads=2)
    save_model(Path("models/semvae"), "SemanticVAE", semantic, {"model": SemanticVAE(semantic).state_dict()}, {})
    texture = TextureVAEConfig(4, (32,) * 5)
    save_model(Path("models/texture_vae"), "TextureVAE", texture, {"model": TextureVAE(texture).state_dict()}, {})


def settings(options: argparse.Namespace) -> Settings:
    """The settings of both ways."""
    return Settings.model_validate(
        {
            "images": {"source": "folder", "folder": "mine", "size": SIDE},
            "encoder": {"name": "dinov2_vits14", "weights": "random", "image_size": 14 * GRID},
            "texture_vae": {"channels": 4, "block_channels": [32] * 5},
            "features": {"batch_size": options.batch, "shard_size": 128},
            "latents": {"batch_size": options.batch, "shard_size": 128, "noise": "content"},
            "runtime": {"device": options.device},
        }
    )


if __name__ == "__main__":
    main()

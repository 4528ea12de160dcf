"""What does `sfd encode-latents` gain by decoding, encoding and writing at the same time?

The stage as it is against the same stage with nothing done in advance: no decoding threads, no thread that encodes
ahead of the writer, no batch that a device is given before the one before it is fetched. Generated JPEGs of 400 px,
cropped to 256 px; a small random ViT, semantic VAE and texture VAE. On a CPU the networks and the decoder share the
cores. `imitated` is the case of a device of its own, such as a GPU: the networks are replaced by one that takes as long
as the decoding and leaves the processor free, and the processor draws posterior noise of XL's latents. `fetched at
once` is the stage but for the batch in advance.
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
from unittest import mock

import numpy as np
import torch
import yaml
from harness import Timing, arguments, interleaved, ratios, save, table
from PIL import Image
from torch import Tensor

from sfd_cli.config import Settings, load_settings
from sfd_cli.data import shards
from sfd_cli.data.images import ImageManifest, ImageReader
from sfd_cli.data.shards import StoreWriter
from sfd_cli.formats.model_folder import save_model
from sfd_cli.networks.semantic_vae import SemanticVAE, SemanticVAEConfig
from sfd_cli.networks.texture_vae import TextureVAE, TextureVAEConfig
from sfd_cli.pipeline import encoding
from sfd_cli.stages import encode_latents, prepare_data

PHOTO, QUALITY = (400, 440), 90
SHARD = 80
XL_LATENTS = [(32, 16, 16), (16, 16, 16)]


def main() -> None:
    """Make images and networks, check that both ways give the same bytes, time them, print, save."""
    options = parse()
    started = time.perf_counter()
    rows = case(options, options.images) + case(options, options.images_imitated, imitated=True)
    table([{key: value for key, value in row.items() if key != "seconds"} for row in rows])
    print(f"\n{time.perf_counter() - started:.0f} s")
    save("encode_latents", options, {"timings": rows})


def parse() -> argparse.Namespace:
    """Command line."""
    parser = arguments(__doc__)
    parser.set_defaults(repetitions=3)
    parser.add_argument("--images", type=int, default=24, help="images to encode with the networks [24]")
    parser.add_argument("--images-imitated", type=int, default=160, help="images to encode without them [160]")
    parser.add_argument("--batch", type=int, default=8, help="images of a forward pass [8]")
    parser.add_argument("--size", type=int, default=256, help="side of the crops, pixels, a multiple of 32 [256]")
    parser.add_argument("--workers", type=int, default=2, help="decoding threads [2]")
    return parser.parse_args()


def case(options: argparse.Namespace, count: int, imitated: bool = False) -> list[dict[str, Any]]:
    """The rows of one table, measured in a folder of its own."""
    folder, here = Path(tempfile.mkdtemp()), Path.cwd()
    os.chdir(folder)
    try:
        prepare(options, count)
        return compare(options, count, imitated)
    finally:
        os.chdir(here)
        shutil.rmtree(folder)


def prepare(options: argparse.Namespace, count: int) -> None:
    """An ImageFolder of JPEGs that are neither flat nor noise, its manifest, and random networks."""
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(PHOTO, Image.Resampling.BICUBIC))
        grained = (smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
        path = Path("mine", f"class-{index % 4}", f"{index:04d}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grained).save(path, quality=QUALITY)
    params = {
        "images": {"source": "folder", "folder": "mine", "size": options.size},
        "encoder": {"name": "vit_tiny_patch16_224", "weights": "random", "image_size": options.size // 2},
        "texture_vae": {"channels": 4, "block_channels": [32] * 6},
        "latents": {"shard_size": SHARD, "batch_size": options.batch, "store_features": False},
        "dit": {"repa": "decoded"},
        "guide": None,
        "sample": {"guidance": "none"},
        "runtime": {"device": options.device},
    }
    Path("params.yaml").write_text(yaml.safe_dump(params))
    torch.manual_seed(0)
    semantic = SemanticVAEConfig(192, channels=16, width=64, depth=1, heads=2)
    save_model(Path("models/semvae"), "SemanticVAE", semantic, {"model": SemanticVAE(semantic).state_dict()}, {})
    texture = TextureVAEConfig(4, (32,) * 6)
    save_model(Path("models/texture_vae"), "TextureVAE", texture, {"model": TextureVAE(texture).state_dict()}, {})
    with contextlib.redirect_stderr(io.StringIO()):
        prepare_data.run(settings(0))


def settings(workers: int) -> Settings:
    """The settings, with this many decoding threads."""
    return load_settings(Path("params.yaml"), {"runtime": {"workers": workers}})


def run(options: argparse.Namespace, ahead: bool, fetched_at_once: bool = False) -> None:
    """The whole stage, from images to a finished store; nothing is done in advance unless `ahead`."""
    shutil.rmtree("data/latents", ignore_errors=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        if not ahead:
            in_turn = mock.patch.object(shards, "prefetched", lambda items, _: (item for item in items))
            stack.enter_context(in_turn)
        if fetched_at_once or not ahead:
            at_once = mock.patch.object(encoding, "one_behind", lambda begun: (fetch() for fetch in begun))
            stack.enter_context(at_once)
        encode_latents.run(settings(options.workers if ahead else 0))


def contents() -> dict[str, bytes]:
    """Every file of the store but the stage's records, by name."""
    return {path.name: path.read_bytes() for path in Path("data/latents").glob("*.h5")}


def compare(options: argparse.Namespace, count: int, imitated: bool) -> list[dict[str, Any]]:
    """Images per second of the stage both ways, and of each of its parts."""
    parts = Parts(options)
    candidates: dict[str, Callable[[], object]] = {
        "one after the other": lambda: run(options, ahead=False),
        "at the same time": lambda: run(options, ahead=True),
        "fetched at once": lambda: run(options, ahead=True, fetched_at_once=True),
        "decode, 1 thread": lambda: parts.decode(0),
        f"decode, {options.workers} threads": lambda: parts.decode(options.workers),
        "encode": parts.encode,
        "write": parts.write,
    }
    with contextlib.ExitStack() as stack:
        if imitated:
            decoding = interleaved({"decode": lambda: parts.decode(0)}, 3)["decode"].median
            device = Imitated(decoding / len(parts.batches), parts.arrays(parts.batches[0]))
            stack.enter_context(mock.patch.object(encoding.LatentEncoder, "begin", device.begin))
        run(options, ahead=False)
        plain = contents()
        run(options, ahead=True)
        if contents() != plain:
            raise AssertionError("the two ways wrote different latents")
        measured = interleaved(candidates, options.repetitions, 0, torch.device(options.device))
    networks = "imitated" if imitated else options.device
    print(f"{networks}: both ways write the same bytes", flush=True)
    return [row(networks, name, timing, measured["one after the other"], count) for name, timing in measured.items()]


def row(networks: str, name: str, timing: Timing, whole: Timing, images: int) -> dict[str, Any]:
    """A row of the table."""
    ratio = ratios(whole, timing)
    return {
        "networks": networks,
        "what": name,
        "ms/image": timing.median * 1e3 / images,
        "images/s": images / timing.median,
        "times": ratio["median"],
        "quartiles": f"{ratio['low']:.3g}-{ratio['high']:.3g}",
        "seconds": timing.seconds,
    }


class Parts:
    """Each part of the stage by itself, on all images."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.manifest = ImageManifest.load(Path("data/images"))
        count = len(self.manifest)
        self.batches = [range(start, min(start + options.batch, count)) for start in range(0, count, options.batch)]
        self.size = options.size
        self.images = list(ImageReader(self.manifest, self.size, 0).iterate(self.batches))
        with contextlib.redirect_stderr(io.StringIO()):
            self.encoder = encoding.LatentEncoder(settings(0), self.manifest, {}, torch.device(options.device))

    def decode(self, workers: int) -> None:
        """Decode and crop, by that many threads."""
        for _ in ImageReader(self.manifest, self.size, workers).iterate(self.batches):
            pass

    def encode(self) -> None:
        """Run the networks on decoded images."""
        for batch, images in zip(self.batches, self.images, strict=True):
            self.encoder.encode(batch, images)

    def arrays(self, batch: range) -> dict[str, np.ndarray]:
        """Something to write for a batch."""
        return {name: np.zeros((len(batch), *field.shape), np.float16) for name, field in self.encoder.fields.items()}

    def write(self) -> None:
        """Write as much as there is to write, as one shard."""
        shutil.rmtree("written", ignore_errors=True)
        Path("written").mkdir()
        count = len(self.manifest)
        with StoreWriter(Path("written"), self.encoder.fields, count, count, "f").shard(0) as file:
            for batch in self.batches:
                file.write(batch.start, self.arrays(batch))


class Imitated:
    """In place of a `LatentEncoder`'s device: it takes its time for one batch after the other, by itself.

    The processor has its own part to do, noise of XL's latents, and waits only for a batch that it asks for too early.
    """

    def __init__(self, seconds: float, arrays: dict[str, np.ndarray]) -> None:
        self.seconds, self.arrays, self.free = seconds, arrays, 0.0

    def begin(self, indices: range, images: Tensor) -> Callable[[], dict[str, np.ndarray]]:
        """As `LatentEncoder.begin`, with the same arrays for every batch."""
        due = self.free = max(self.free, time.perf_counter()) + self.seconds
        encoding.posterior_noise(0, indices, XL_LATENTS, flips=2)

        def fetch() -> dict[str, np.ndarray]:
            time.sleep(max(due - time.perf_counter(), 0))
            return {name: array[: len(indices)] for name, array in self.arrays.items()}

        return fetch


if __name__ == "__main__":
    main()

"""What do TF32 and bf16 change in tokens, latents and reconstructions, and what does each part of encoding take?

The networks of a finished project (the demo unless another is named) on some of its images: tokens of the visual
encoder, semantic latents of its exact tokens and of its own, texture latents, and images and tokens that are decoded
from each, against float32. Where the device has no TF32 it is imitated: what goes into every product is rounded to 10
bits of mantissa, ties away from zero, as the hardware does. Textures of the demo are principal components, which are
computed in float32 whatever the setting; `rounded` has them in that precision all the same.

Then, timed turn by turn: the networks in each precision, a convolutional texture VAE with its channels first and last,
and how decoded images become a batch.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import arguments, interleaved, ratios, save, table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from sfd_cli.config import load_settings
from sfd_cli.data.images import ImageManifest, ImageReader, evenly_spaced
from sfd_cli.devices import kind_of
from sfd_cli.evaluation.image_fidelity import psnr
from sfd_cli.networks.precision import FrozenPrecision, computing, frozen
from sfd_cli.networks.texture_pca import TexturePCA
from sfd_cli.networks.texture_vae import TextureVAE, TextureVAEConfig, to_pixels, to_signed
from sfd_cli.weights.models import open_semantic, open_texture_vae
from sfd_cli.weights.visual_encoders import load_visual_encoder

PRECISIONS: tuple[FrozenPrecision, ...] = ("fp32", "tf32", "bf16")
BATCH = (128, 256)  # images of a batch that is stacked, and their side


def main() -> None:
    """Measure errors, then time; print, save."""
    options = parse()
    device, out = torch.device(options.device), options.out.resolve()
    options.out, here = out, Path.cwd()
    torch.manual_seed(0)
    os.chdir(options.project)
    try:
        networks = Networks(options.images, device)
    finally:
        os.chdir(here)
    found = {
        "errors": networks.errors(),
        "precisions": timed({name: networks.timed(name) for name in networks.real()}, options, networks.count),
        "layouts": timed(layouts(options, device), options, 1),
        "stacking": timed(stacking(*options.stack), options, options.stack[0]),
    }
    for name, rows in found.items():
        print(f"\n{name}")
        table([{key: value for key, value in row.items() if key != "seconds"} for row in rows])
    options.project = "a finished demo"
    save("encoding", options, found)


def parse() -> argparse.Namespace:
    """Command line."""
    parser = arguments(__doc__)
    parser.add_argument("--project", type=Path, default=Path(), help="folder of a finished project [this one]")
    parser.add_argument("--images", type=int, default=64, help="images that are encoded [64]")
    parser.add_argument("--side", type=int, default=64, help="side of the image that the VAE encodes, pixels [64]")
    parser.add_argument("--stack", type=int, nargs=2, default=BATCH, help="images of a batch, and their side [128 256]")
    return parser.parse_args()


class Networks:
    """The frozen networks of a project, on a device, and some of its images."""

    def __init__(self, count: int, device: torch.device) -> None:
        settings = load_settings(Path("params.yaml"))
        manifest = ImageManifest.load(settings.paths.images)
        self.device, chosen = device, evenly_spaced(len(manifest), count)
        self.count, self.tokens = len(chosen), torch.empty(0)
        self.images = ImageReader(manifest, settings.images.size).read(chosen).to(device)
        self.encoder = load_visual_encoder(settings.encoder).to(device)
        self.semantic = open_semantic(settings).load().to(device)
        self.texture = open_texture_vae(settings).load().to(device)
        with frozen("fp32", device):
            self.tokens = self.encoder(self.images.float() / 255)[0].half().float()

    def real(self) -> list[FrozenPrecision]:
        """Precisions that the device has."""
        return [name for name in PRECISIONS if name != "tf32" or kind_of(self.device).tf32]

    def timed(self, precision: FrozenPrecision) -> Callable[[], object]:
        """All three networks on all images."""
        return lambda: self.made(precision)

    def made(self, precision: FrozenPrecision) -> dict[str, Tensor]:
        """What the networks make in a precision; textures as the stage has them, and with their own products in it."""
        with frozen(precision, self.device):
            return computing(self._made, precision, self.device)()

    def _made(self) -> dict[str, Tensor]:
        tokens = self.encoder(self.images.float() / 255)[0].half().float()
        found = {"tokens": tokens, "semantic latents": self.semantic.encode(tokens)[0].float()}
        found["semantic latents of exact tokens"] = self.semantic.encode(self.tokens)[0].float()
        pixels = to_signed(self.images)
        found["texture latents"] = self.texture.encode(pixels)[0].float()
        if isinstance(self.texture, TexturePCA):
            patches = torch.nn.functional.pixel_unshuffle(pixels, self.texture.config.patch_size)
            flat = (patches - self.texture.mean[:, None, None]).flatten(2).transpose(1, 2)
            codes = (flat @ self.texture.components.T).float().transpose(1, 2)
            found["texture latents, rounded"] = codes.unflatten(2, found["texture latents"].shape[2:])
        return found

    def errors(self) -> list[dict[str, Any]]:
        """Root of the mean squared error over the standard deviation, and what is left of what is decoded."""
        exact, rows = self.made("fp32"), []
        for precision in PRECISIONS[1:]:
            if precision in self.real():
                made = self.made(precision)
            else:
                with imitated_tf32():
                    made = self.made("fp32")
            rows += [self.row(precision, what, exact[what], values) for what, values in made.items()]
        return rows

    def row(self, precision: str, what: str, exact: Tensor, values: Tensor) -> dict[str, Any]:
        """One thing in one precision: its error, and reconstructions against the images or the tokens themselves."""
        stored = exact.half().float()
        row = {
            "precision": precision + ("" if precision in self.real() else " (imitated)"),
            "what": what,
            "relative error": relative(values, exact),
            "of float16": relative(stored, exact),
        }
        with frozen("fp32", self.device):
            if what.startswith("texture"):
                images = [to_pixels(self.texture.decode(latents)) for latents in (exact, values)]
                before, after = (psnr(image, self.images).mean().item() for image in images)
                row |= {"reconstruction": f"{before:.3f} -> {after:.3f} dB"}
            elif what.startswith("semantic"):
                decoded = [self.semantic.decode(latents.flatten(2)) for latents in (exact, values)]
                before, after = (cosine(tokens, self.tokens) for tokens in decoded)
                row |= {"reconstruction": f"{before:.5f} -> {after:.5f} cosine"}
            else:
                row |= {"reconstruction": f"{cosine(values, exact):.6f} cosine"}
        return row


def relative(values: Tensor, exact: Tensor) -> float:
    """Root mean squared error over the standard deviation of the exact ones, all channels together."""
    return float((values - exact).square().mean().sqrt() / exact.std())


def cosine(values: Tensor, others: Tensor) -> float:
    """Mean cosine of vectors along the last axis."""
    return float(torch.nn.functional.cosine_similarity(values, others, dim=-1).mean())


PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::convolution")


class _Tf32(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().split(".")[0] in PRODUCTS:
            args = tuple(_rounded(arg) if isinstance(arg, Tensor) and arg.ndim > 1 else arg for arg in args)
            return func(*args, **(kwargs or {}))
        with self:  # without gradients PyTorch hands over whole attentions and layers: look at what they are made of
            made = func.decompose(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if made is NotImplemented else made


def _rounded(values: Tensor) -> Tensor:
    """float32 with 10 bits of mantissa, ties away from zero, which is how they go into TF32 products."""
    return ((values.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@contextmanager
def imitated_tf32() -> Iterator[None]:
    """A block whose float32 products are of rounded numbers, attention's too."""
    with sdpa_kernel(SDPBackend.MATH), _Tf32():
        yield


def layouts(options: argparse.Namespace, device: torch.device) -> dict[str, Callable[[], object]]:
    """The encoder of a convolutional texture VAE on an image, with its channels first and last."""
    torch.manual_seed(0)
    config = TextureVAEConfig(4, (64, 128, 128, 128))
    first, last = (TextureVAE(config).eval().to(device) for _ in range(2))
    last.load_state_dict(first.state_dict())
    last.to(memory_format=torch.channels_last)
    images = torch.rand(1, 3, options.side, options.side, device=device)

    def encode(network: TextureVAE) -> Tensor:
        with frozen("fp32", device):
            return network.encode(images)[0]

    a, b = encode(first), encode(last)
    print(
        f"channels last: {'equal bytes' if torch.equal(a, b) else f'other bytes, relative error {relative(b, a):.1e}'}"
    )
    return {"channels first": lambda: encode(first), "channels last": lambda: encode(last)}


def stacking(count: int, side: int) -> dict[str, Callable[[], object]]:
    """A batch of decoded images: transposed by NumPy as before, by PyTorch, or left to the device."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(count)]
    buffer = torch.empty((count, side, side, 3), dtype=torch.uint8)

    def stack() -> Tensor:
        np.stack(images, out=buffer.numpy())
        return buffer

    return {
        "NumPy transposes": lambda: np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)),
        "PyTorch transposes": lambda: stack().permute(0, 3, 1, 2).contiguous(),
        "stacked for a device": stack,
    }


def timed(
    candidates: dict[Any, Callable[[], object]], options: argparse.Namespace, images: int
) -> list[dict[str, Any]]:
    """Rows of a table, ratios to the first candidate."""
    measured = interleaved(candidates, options.repetitions, 1, torch.device(options.device))
    first = next(iter(measured.values()))
    rows = []
    for name, timing in measured.items():
        ratio = ratios(first, timing)
        spread = f"{ratio['low']:.3g}-{ratio['high']:.3g}"
        row = {"what": name, "ms/image": timing.median * 1e3 / images, "times": ratio["median"], "quartiles": spread}
        rows.append(row | {"seconds": timing.seconds})
    return rows


if __name__ == "__main__":
    main()

"""Do colours survive the codec? Composed scenes, encoded and decoded, and the colour of every object afterwards.

The scenes of `scenes.py`: one or two of 16 objects in eight colours, whose fill is known to the pixel. An object's
colour is the one of the eight that is nearest, in CIELAB (D65, Euclidean distance), to the mean CIELAB colour of the
pixels that its fill covers wholly. Beside it the share of those pixels that have the right colour one by one. The
images themselves and the images without colour are scored alike: what a perfect codec gets, and one that keeps shapes.

    python benchmarks/colours.py --codec models/texture_vae --scenes 500 --seed 0
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from PIL import Image
from scenes import COLOURS, OBJECTS, Scene, code_rgb, scenes

from sfd_cli.config import Settings
from sfd_cli.errors import UserError
from sfd_cli.networks.texture_vae import to_pixels, to_signed
from sfd_cli.weights.models import open_texture_vae

NAMES = list(COLOURS)
BATCH = 50
PICTURED = 16
# Linear sRGB to XYZ; its rows add up to the white point.
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def linear(pixels: np.ndarray) -> np.ndarray:
    """sRGB pixels, uint8, as linear light in [0, 1] (IEC 61966-2-1)."""
    encoded = pixels / 255
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def lab(pixels: np.ndarray) -> np.ndarray:
    """sRGB pixels, uint8 (..., 3), as CIELAB under D65 (CIE 15)."""
    relative = linear(pixels) @ TO_XYZ.T / TO_XYZ.sum(axis=1)
    x, y, z = np.moveaxis(np.where(relative > 216 / 24389, np.cbrt(relative), relative * 841 / 108 + 4 / 29), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


PALETTE = lab(np.stack([code_rgb(code) for code in COLOURS.values()]))


def nearest(colours: np.ndarray) -> np.ndarray:
    """Index in NAMES of the colour nearest to each of the CIELAB colours (..., 3)."""
    return np.linalg.norm(colours[..., None, :] - PALETTE, axis=-1).argmin(axis=-1)


def score(drawn: Sequence[Scene], images: np.ndarray) -> dict[str, Any]:
    """How many objects have their colour in `images`, uint8 (N, size, size, 3): the scenes as a codec gives them.

    Returns:
        `objects`: fraction of objects of the right colour, `one` and `two` of those in scenes of so many; `scenes`:
        fraction of scenes in which all are right; `pixels`: fraction of right pixels, a mean over objects; `distance`:
        of an object's mean colour from its own in CIELAB, a mean too; `confusion`: counts, a row for every true
        colour and a column for every found one; `of object`: fraction of right ones by name.
    """
    confusion = np.zeros((len(NAMES), len(NAMES)), dtype=int)
    rows: list[tuple[int, int, str, bool, float, float]] = []
    for index, (scene, image) in enumerate(zip(drawn, images, strict=True)):
        for placed in scene.objects:
            true, pixels = NAMES.index(placed.colour), lab(image[placed.mask])
            mean = pixels.mean(axis=0)
            found = int(nearest(mean))
            confusion[true, found] += 1
            distance = float(np.linalg.norm(mean - PALETTE[true]))
            count = len(scene.objects)
            rows.append((index, count, placed.name, found == true, float((nearest(pixels) == true).mean()), distance))
    scene_of, count, name, right, share, distances = (np.array(column) for column in zip(*rows, strict=True))
    return {
        "objects": float(right.mean()),
        "one": float(right[count == 1].mean()),
        "two": float(right[count == 2].mean()),
        "scenes": float(np.mean([right[scene_of == index].all() for index in range(len(drawn))])),
        "pixels": float(share.mean()),
        "distance": float(distances.mean()),
        "confusion": confusion.tolist(),
        "of object": {one: float(right[name == one].mean()) for one in OBJECTS if (name == one).any()},
    }


@torch.no_grad()
def through(codec: Any, images: np.ndarray, device: torch.device) -> np.ndarray:
    """Images, uint8 (N, size, size, 3), encoded to the posterior's mean and decoded."""
    codec = codec.to(device).eval()
    decoded = []
    for batch in torch.from_numpy(images).permute(0, 3, 1, 2).split(BATCH):
        mean, _ = codec.encode(to_signed(batch.to(device)))
        decoded.append(to_pixels(codec.decode(mean)).cpu())
    return torch.cat(decoded).permute(0, 2, 3, 1).numpy()


def grey(images: np.ndarray) -> np.ndarray:
    """The images without their colour: every pixel's luminance as a level of grey."""
    luminance = linear(images) @ TO_XYZ[1]
    level = np.where(luminance <= 0.0031308, luminance * 12.92, 1.055 * luminance ** (1 / 2.4) - 0.055)
    return np.repeat((level * 255).round().astype(np.uint8)[..., None], 3, axis=-1)


def picture(images: np.ndarray, decoded: np.ndarray, path: Path) -> None:
    """The first scenes, each above what the codec made of it, two rows of pairs, twice as large."""
    shown = min(PICTURED, len(images)) // 2 * 2
    rows = [
        np.concatenate(list(part[half : half + shown // 2]), axis=1)
        for half in (0, shown // 2)
        for part in (images, decoded)
    ]
    whole = Image.fromarray(np.concatenate(rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.resize((whole.width * 2, whole.height * 2), Image.Resampling.NEAREST).save(path)


def of_settings(settings: Settings) -> float:
    """Fraction of objects of the right colour in 500 scenes through the codec at `paths.texture_vae`."""
    drawn = list(scenes(500, seed=0, size=settings.images.size))
    images = np.stack([scene.image for scene in drawn])
    decoded = through(open_texture_vae(settings).load(), images, torch.device("cpu"))
    return float(score(drawn, decoded)["objects"])


def main() -> None:
    """Draw, encode and decode, score, print, picture and save."""
    parser = harness.arguments(__doc__, timed=False)
    parser.add_argument("--codec", default="models/texture_vae", help="a model folder, or another source [%(default)s]")
    parser.add_argument("--scenes", type=int, default=500, help="scenes, half of them with two objects [%(default)s]")
    parser.add_argument("--size", type=int, default=64, help="side of a scene, pixels [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes [%(default)s]")
    options = parser.parse_args()
    try:
        opened = open_texture_vae(Settings(), source=options.codec)
        drawn = list(scenes(options.scenes, options.seed, options.size))
    except (UserError, ValueError) as error:
        parser.error(str(error))
    images = np.stack([scene.image for scene in drawn])
    decoded = through(opened.load(), images, torch.device(options.device))

    found = {
        name: score(drawn, some) for name, some in (("images", images), ("grey", grey(images)), ("codec", decoded))
    }
    columns = ("objects", "one", "two", "scenes", "pixels", "distance")
    harness.table([{"what": name} | {key: result[key] for key in columns} for name, result in found.items()])
    print("\ncodec: rows are true colours, columns found ones, counts of objects")
    table = zip(NAMES, found["codec"]["confusion"], strict=True)
    harness.table([{"": name} | dict(zip(NAMES, counts, strict=True)) for name, counts in table])
    picture(images, decoded, Path(options.out) / "colours.png")
    result = {"fingerprint": opened.fingerprint, "space": "CIELAB, D65", "colours": COLOURS, "scores": found}
    harness.save("colours", options, result)


if __name__ == "__main__":
    main()

"""Would other semantics tell more? How well a linear classifier tells the classes from DINOv2 tokens of larger images.

The tokens of an image of every size are averaged to the same grid, compressed to principal components (the compressor
`pca`) and scaled to one each; held-out discriminant analysis of all of them, as in `sfd schedule inspect`, and of the
class token. Folds keep images together that are near-duplicates by the fewest components of the smallest images.

    python benchmarks/semantics.py      # the demo's, after `sfd prepare-data`
    python benchmarks/semantics.py --name fashion-mnist --sides 56 --most 4096     # of that preset
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from harness import arguments, save, table
from torch import Tensor

from sfd_cli.config import Encoder, load_settings
from sfd_cli.data.images import ImageManifest, ImageReader, evenly_spaced
from sfd_cli.diffusion.class_accuracy import HeldOutAccuracy
from sfd_cli.diffusion.spectra import directions_of_others
from sfd_cli.evaluation.inspection import clusters_of, folds_of
from sfd_cli.networks.semantic_pca import SemanticPCA
from sfd_cli.weights.visual_encoders import load_visual_encoder

BATCH = 50


def tokens_of(
    options: argparse.Namespace, encoder: Encoder, reader: ImageReader, rows: list[int]
) -> tuple[Tensor, ...]:
    """Patch tokens averaged to the grid (n, grid * grid, D) and class tokens (n, D) of these images, on the CPU."""
    network = load_visual_encoder(encoder).to(options.device)
    found = []
    with torch.inference_mode():
        for images in reader.iterate([rows[first : first + BATCH] for first in range(0, len(rows), BATCH)]):
            patches, classes = network(images.to(options.device).float() / 255)
            side = round(patches.shape[1] ** 0.5)
            pooled = torch.nn.functional.adaptive_avg_pool2d(patches.mT.unflatten(2, (side, side)), options.grid)
            found.append((pooled.flatten(2).mT.cpu(), classes.cpu()))
    return tuple(map(torch.cat, zip(*found, strict=True)))


def components(tokens: Tensor, channels: int) -> Tensor:
    """The leading components of all tokens (n, N, D), each scaled to one: (n, N * channels)."""
    flat = tokens.flatten(0, 1).double()
    network = SemanticPCA.of_tokens(flat.mean(0), flat.T.cov(correction=0), channels)
    latents = network.encode(tokens)[0]
    return (latents / latents.std(dim=(0, 1))).flatten(1)


def accuracy(values: Tensor, labels: Tensor, folds: Tensor) -> float:
    """Share of the images whose class is told from values (n, D) by a classifier that has not seen them."""
    values = values.double()
    generator = torch.Generator().manual_seed(0)
    classes = int(labels.max()) + 1
    reader = HeldOutAccuracy(values, labels, classes, folds, directions_of_others(values, folds), generator)
    return float(reader.at(1.0).mean())


def main() -> None:
    """Encode, compress, classify and save."""
    parser = arguments(__doc__, timed=False)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="settings [%(default)s]")
    parser.add_argument("--images", type=Path, default=Path("data/images"), help="prepared images [%(default)s]")
    parser.add_argument("--name", default="openmoji", help="of the images, for the results [%(default)s]")
    parser.add_argument("--most", type=int, default=8192, help="images, evenly spread [%(default)s]")
    parser.add_argument(
        "--sides", nargs="+", type=int, default=[56, 84, 112], help="of encoded images, px [%(default)s]"
    )
    parser.add_argument("--channels", nargs="+", type=int, default=[8, 16, 32, 64], help="components [%(default)s]")
    parser.add_argument("--grid", type=int, default=4, help="side that tokens are averaged to [%(default)s]")
    options = parser.parse_args()
    settings, manifest = load_settings(options.params), ImageManifest.load(options.images)
    chosen = evenly_spaced(len(manifest), options.most)
    reader, labels = ImageReader(manifest, settings.images.size), torch.tensor(manifest.labels)[chosen]
    rows, folds = [], None
    for side in options.sides:
        encoder = settings.encoder.model_copy(update={"image_size": side})
        tokens, classes = tokens_of(options, encoder, reader, chosen)
        if folds is None:
            folds = folds_of(clusters_of(components(tokens, min(options.channels))), seed=0)
        found = {
            f"{count} components": accuracy(components(tokens, count), labels, folds) for count in options.channels
        }
        rows.append({"side": side} | found | {"class token": accuracy(classes, labels, folds)})
        print(rows[-1], flush=True)
    table(rows)
    save(f"semantics-{options.name}", options, {"images": len(labels), "classes": int(labels.max()) + 1, "rows": rows})


if __name__ == "__main__":
    main()

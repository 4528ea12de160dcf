"""Features of images, for every extractor in one pass: moments of all, and rows of as many as memory allows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sfd_cli.config import Encoder
from sfd_cli.errors import StageFailure
from sfd_cli.evaluation.frechet import GATHERED, Gaussian, Moments
from sfd_cli.formats.torch_files import read_weights_file
from sfd_cli.weights.visual_encoders import load_visual_encoder

ROWS_KEPT = 50_000


@dataclass(frozen=True)
class Extractor:
    """Images to features: `compute` maps uint8 (n, 3, H, W) on `device` to float (n, width)."""

    name: str
    width: int
    device: torch.device
    compute: Callable[[Tensor], Tensor]

    def __call__(self, images: Tensor) -> Tensor:
        """Features (n, width), float32 on the CPU, of uint8 images (n, 3, H, W)."""
        with torch.inference_mode():
            return self.compute(images.to(self.device)).float().cpu()


def class_token_extractor(config: Encoder, device: torch.device) -> Extractor:
    """The visual encoder's class token after the final norm."""
    encoder = load_visual_encoder(config).to(device)
    return Extractor("dinov2", encoder.feature_width, device, lambda images: encoder(images.float() / 255)[1])


def inception_extractor(weights: Path, device: torch.device) -> Extractor:
    """torch-fidelity's Inception-v3, 2048 pooled features, TensorFlow-compatible resizing.

    Raises:
        UserError: `weights` is not a plain state dict.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # torch-fidelity unpickles what it is given; only a file that loads without executing anything gets there.
    read_weights_file(weights)
    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights))
    network.to(device)
    return Extractor("inception", 2048, device, lambda images: network(images)[0])


class FeatureSet:
    """Features of one set of images.

    Args:
        width: features per image, D.
        count: images there will be.
        seed: draws which images form the first half, and which rows are kept when there are more than
            `ROWS_KEPT` (precision, recall and KID work on rows; Fréchet distances on moments of all).
    """

    def __init__(self, width: int, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(count, generator=generator)
        self.expected = count
        self._first_half = torch.zeros(count, dtype=torch.bool)
        self._first_half[order[: count // 2]] = True
        self._kept = torch.ones(count, dtype=torch.bool)
        if count > ROWS_KEPT:
            self._kept[torch.randperm(count, generator=generator)[ROWS_KEPT:]] = False
        self._halves = (Moments(width), Moments(width))
        # Whole from the start: joined later, the features would be there twice.
        self._rows = torch.empty(int(self._kept.sum()), width)
        self._filled = 0

    @property
    def count(self) -> int:
        """Images seen."""
        return self._halves[0].count + self._halves[1].count

    @property
    def rows(self) -> Tensor:
        """Kept features (k, D), float32, in the order of the images."""
        return self._rows[: self._filled]

    def half(self, which: int) -> Gaussian:
        """The Gaussian of one random half; the first has floor(count / 2) images."""
        return self._halves[which].gaussian()

    def first_half_rows(self) -> Tensor:
        """Kept features of the first half."""
        return self.rows[self._first_half[self._kept]]

    def gaussian(self) -> Gaussian:
        """The Gaussian of all images."""
        return self._halves[0].merged(self._halves[1]).gaussian()

    def update(self, features: Tensor) -> None:
        """Add the features (n, D) of the next n images."""
        span = slice(self.count, self.count + len(features))
        first, kept = self._first_half[span], self._kept[span]
        rows = features[kept]
        self._rows[self._filled : self._filled + len(rows)] = rows
        self._filled += len(rows)
        self._halves[0].update(features[first])
        self._halves[1].update(features[~first])


def gaussian_of_subset(rows: Tensor, count: int, seed: int) -> Gaussian:
    """The Gaussian of `count` random rows of features (n, D); the order of rows may follow the classes."""
    moments = Moments(rows.shape[1])
    for chosen in torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count].split(GATHERED):
        moments.update(rows[chosen])
    return moments.gaussian()


def extract(batches: Iterable[Tensor], count: int, extractors: list[Extractor], seed: int) -> dict[str, FeatureSet]:
    """Run every extractor over the same images, reading them once.

    Args:
        batches: uint8 (n, 3, H, W), together `count` images.
        count: images expected.
        extractors: what to compute.
        seed: see `FeatureSet`.

    Returns:
        A feature set per extractor name.

    Raises:
        StageFailure: another number of images came, or a feature is not finite.
    """
    sets = {extractor.name: FeatureSet(extractor.width, count, seed) for extractor in extractors}
    seen = 0
    for images in batches:
        seen += len(images)
        if seen > count:
            break
        for extractor in extractors:
            features = extractor(images)
            if not torch.isfinite(features).all():
                raise StageFailure(f"{extractor.name} features of images up to {seen} are not finite")
            sets[extractor.name].update(features)
    if seen != count:
        raise StageFailure(f"expected {count} images to score but read {seen}; no score is reported")
    return sets

"""Reference images through the texture codec and back: no transformer that samples its latents can be better."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from sfd_cli.config import Fid, Settings
from sfd_cli.devices import float32_products
from sfd_cli.distributed.processes import ALONE, Processes
from sfd_cli.errors import StageFailure, UserError
from sfd_cli.evaluation.extractor import Extractor
from sfd_cli.evaluation.features import FeatureSet, extract
from sfd_cli.evaluation.gaussian import Gaussian
from sfd_cli.evaluation.images import ImageSource
from sfd_cli.evaluation.metric import Reconstructed
from sfd_cli.evaluation.scored_images import choose
from sfd_cli.networks.texture_vae import to_pixels, to_signed
from sfd_cli.pipeline.sampler import DECODED_AT_ONCE
from sfd_cli.weights.models import TextureCompressor, open_texture_vae


@dataclass(frozen=True)
class TextureCodec:
    """The texture codec of `paths.texture_vae`, trained, fitted or imported, as sampling would decode with it.

    Attributes:
        network: encoder and decoder.
        device: where they are.
        to_uint8: how pixels become 8-bit levels, `sample.to_uint8`.
        name: where it is, for messages.
        fingerprint: of its weights.
    """

    network: TextureCompressor
    device: torch.device
    to_uint8: Literal["round", "truncate"]
    name: str
    fingerprint: str

    @classmethod
    def open(cls, settings: Settings, device: torch.device) -> Self:
        """Load the codec.

        Raises:
            UserError: it is missing, damaged or something else.
        """
        model = open_texture_vae(settings)
        return cls(model.load().to(device), device, settings.sample.to_uint8, model.source, model.fingerprint)

    def require_side(self, *sides: int) -> None:
        """Check that it can encode images of these sides, pixels.

        Raises:
            UserError: one is not a multiple of the codec's factor.
        """
        factor = self.network.downsampling
        if any(side % factor for side in sides):
            problem = f"encodes images of a multiple of {factor} pixels, and these have {sides[-1]}"
            raise UserError(self.name, problem, "score images of another size, or with another codec")

    @torch.inference_mode()
    def reconstruct(self, pixels: Tensor) -> Tensor:
        """Uint8 images (n, 3, H, W) through posterior means and back: of the same shape, on the CPU.

        Raises:
            StageFailure: what is decoded is not finite, and would be black.
        """
        found = []
        with float32_products(self.device, tf32=True):
            for part in pixels.split(DECODED_AT_ONCE):
                mean, _ = self.network.encode(to_signed(part).to(self.device))
                images = self.network.decode(mean)
                if not bool(images.isfinite().all()):
                    raise StageFailure(self.name, "what it decodes of real images is not finite", "train it again")
                found.append(to_pixels(images, self.to_uint8).cpu())
        return torch.cat(found)


@dataclass(frozen=True)
class ReconstructedImages:
    """Images as the codec gives them back."""

    originals: ImageSource
    codec: TextureCodec

    @property
    def count(self) -> int:
        """Number of images."""
        return self.originals.count

    def at(self, indices: Sequence[int]) -> Self:
        """See `ImageSource`."""
        return replace(self, originals=self.originals.at(indices))

    def batches(self, size: int) -> Iterator[Tensor]:
        """See `ImageSource`."""
        for batch in self.originals.batches(size):
            yield self.codec.reconstruct(batch)


def open_codec(settings: Settings, images: ImageSource, processes: Processes) -> tuple[TextureCodec | None, str]:
    """The codec, or why it cannot give these images back: where one process cannot, none does."""
    codec, why = None, "another process cannot open the texture codec"
    try:
        found = TextureCodec.open(settings, processes.device(settings.runtime.device))
        found.require_side(*next(images.at([0]).batches(1)).shape[-2:])
        codec = found
    except UserError as error:
        why = str(error)
    return (None, why) if processes.any(codec is None) else (codec, "")


def reconstructed(
    codec: TextureCodec,
    options: Fid,
    images: ImageSource,
    real: dict[str, dict[str, FeatureSet]],
    extractors: list[Extractor],
    count: int,
    processes: Processes = ALONE,
) -> dict[str, dict[str, Reconstructed]]:
    """Features of `count` images of the reference that came back from the codec, by extractor and kind.

    They are random ones of the first half of the reference, all of it if that is smaller, so that they may be compared
    with the other half as samples are.

    Args:
        codec: that they go through.
        options: the section `fid`.
        images: of the reference.
        real: their features, by extractor and kind.
        extractors: one or more of those, for the kinds of features that are wanted.
        count: of the samples.
        processes: that share the images and all call this alike; the result is the first one's, others get nothing.

    Raises:
        UserError: an image is damaged.
        StageFailure: what is decoded, or a feature of it, is not finite.
    """
    # Which images these are follows from their number and the seed, in every process.
    half = FeatureSet(1, images.count, options.seed).first_half_indices()
    chosen = choose(len(half), min(count, len(half)), options.seed)
    source = ReconstructedImages(images.at(half[chosen].tolist()), codec)
    found = extract(source, "reconstructions", extractors, options.batch_size, options.seed, processes)
    return {
        name: {
            kind: Reconstructed(seen, Gaussian.of_rows(real[name][kind].first_half_rows()[chosen]))
            for kind, seen in kinds.items()
        }
        for name, kinds in found.items()
    }

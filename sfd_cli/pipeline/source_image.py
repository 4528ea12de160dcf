"""Image to image: a picture to make images of, and what is to be done with it, checked before anything is encoded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sfd_cli.config import Sample, Settings
from sfd_cli.data.images import DECODE_ERRORS, as_rgb, center_crop, decode_image, why_not_decoded
from sfd_cli.diffusion.latents import LatentSpace
from sfd_cli.errors import UserError
from sfd_cli.files import sha256_file
from sfd_cli.networks.visual_encoder import VisualEncoder
from sfd_cli.pipeline.arguments import as_pixels
from sfd_cli.pipeline.held import StreamNames, cells_of
from sfd_cli.pipeline.image_encoder import encode_images
from sfd_cli.pipeline.models import EncodingModels
from sfd_cli.pipeline.origin import Origin
from sfd_cli.pipeline.sampler import Sampler
from sfd_cli.weights.models import SemanticCompressor

Picture = str | Path | Image.Image
OTHER: dict[str, StreamNames] = {"semantics": "textures", "textures": "semantics"}
WHITE = 255


@dataclass(frozen=True)
class SourceImage:
    """A picture and what is done with it: keep a stream of it, start from it with noise, or draw a part of it anew.

    Attributes:
        image: RGB.
        keep: a stream that is kept; None: neither as a whole.
        start: as of `Origin`.
        mask: of the same size, white where it is drawn anew, black where it is kept; None: white.
        fingerprints: SHA-256 of the files.
    """

    image: Image.Image
    keep: Literal["semantics", "textures"] | None = None
    start: float = 0.0
    mask: Image.Image | None = None
    fingerprints: tuple[tuple[str, str], ...] = ()

    @classmethod
    def open(cls, sample: Sample, image: Picture | None = None, mask: Picture | None = None) -> Self | None:
        """What the settings ask for; None where they ask for no picture.

        Args:
            sample: `keep` and `start_time`; and `image` and `mask` where these are not given.
            image: a picture or its file.
            mask: likewise.

        Raises:
            UserError: a file cannot be read as an image, a mask is of another size than the picture or not black and
                white, or settings want a picture that is not there, or a picture that nothing is to be done with.
        """
        image, mask = sample.image if image is None else image, sample.mask if mask is None else mask
        asked = {"sample.keep": sample.keep, "sample.start_time": sample.start_time, "sample.mask": mask}
        asked = {key: value for key, value in asked.items() if value is not None}
        if image is None:
            if asked:
                raise UserError(next(iter(asked)), "there is no image to do this with", "give one as sample.image")
            return None
        if not asked:
            problem = "nothing is said of what to do with it"
            raise UserError("sample.image", problem, "add keep, start_time or mask")
        files = {"image": image, "mask": mask}
        digests = ((name, sha256_file(Path(file))) for name, file in files.items() if isinstance(file, str | Path))
        opened = as_rgb(_opened(image, "sample.image"))
        drawn = None if mask is None else _black_and_white(_opened(mask, "sample.mask"), opened)
        return cls(opened, sample.keep, sample.start_time or 0.0, drawn, tuple(digests))

    def origin(
        self, sampler: Sampler, semantic: SemanticCompressor | None = None, encoder: VisualEncoder | None = None
    ) -> Origin:
        """The picture encoded for a model, as the mean of its posterior.

        Args:
            sampler: the model.
            semantic: makes the semantic latent of patch tokens; not needed where the model has no semantics.
            encoder: makes the patch tokens.

        Raises:
            UserError: a network is missing, or the model has not both streams of which one is to be kept.
        """
        space = sampler.space
        if self.keep is not None and not space.semantic:
            raise UserError("sample.keep", f"{sampler.name} has no semantics, so there is one stream", "leave it out")
        kept = self._kept(space, sampler.image_size)
        pixels = as_pixels(self.image, sampler.image_size)
        latents = encode_images(pixels, space, sampler.require_texture_vae(), semantic, encoder)
        return Origin(latents, None if kept is None else kept.to(latents.device), self.start)

    def _kept(self, space: LatentSpace, side: int) -> Tensor | None:
        """See `Origin.kept`; of a picture cropped to `side` pixels."""
        if self.keep is None and self.mask is None:
            return None
        white = torch.ones(space.grid, space.grid, dtype=torch.bool)
        if self.mask is not None:
            white = _white_cells(self.mask, side, space.grid)
        return ~cells_of(space, "both" if self.keep is None else OTHER[self.keep], white)


@dataclass(frozen=True)
class RunSource:
    """The source image of a run by settings, with the models that encode it, whose weights are not read yet.

    Attributes:
        image: the picture.
        encoding: makes its semantic latent; None where the transformer has no semantics.
    """

    image: SourceImage
    encoding: EncodingModels | None

    @classmethod
    def open(cls, settings: Settings, image: SourceImage | None, semantic: int) -> Self | None:
        """Of a transformer with so many `semantic` channels; None without an image.

        Raises:
            UserError: the semantic compressor is missing, damaged or something else.
        """
        return None if image is None else cls(image, EncodingModels.open(settings) if semantic else None)

    def fingerprints(self) -> dict[str, str]:
        """Of the files and the models that decide its latents.

        Raises:
            UserError: a model is unfinished, or cannot be had.
        """
        return dict(self.image.fingerprints) | ({} if self.encoding is None else self.encoding.fingerprints())

    def placed(self, sampler: Sampler) -> Sampler:
        """The same sampler, which makes images of the picture.

        Raises:
            UserError: model, settings and picture do not fit together.
        """
        if self.encoding is None:
            return replace(sampler, origin=self.image.origin(sampler))
        encoders = self.encoding.load(sampler.space, sampler.device)
        return replace(sampler, origin=self.image.origin(sampler, *encoders))


def _white_cells(mask: Image.Image, side: int, grid: int) -> Tensor:
    """Cells, bool (grid, grid), in which a pixel is white once the mask is cropped as its picture is.

    Raises:
        UserError: there are none.
    """
    white = torch.from_numpy(np.asarray(center_crop(mask, side)) > WHITE // 2)
    cells = white.unflatten(1, (grid, -1)).unflatten(0, (grid, -1)).any(dim=3).any(dim=1)
    if not bool(cells.any()):
        raise UserError("sample.mask", "nothing is white in the middle that images show", "paint white what to redraw")
    return cells


def _opened(picture: Picture, subject: str) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture
    if not isinstance(picture, str | Path):
        raise UserError(subject, f"a {type(picture).__name__} is no picture", "give a PIL image, or the path of one")
    try:
        return decode_image(Path(picture))
    except DECODE_ERRORS as error:
        raise UserError(subject, f"{picture} cannot be read as an image ({why_not_decoded(error)})") from None


def _black_and_white(mask: Image.Image, image: Image.Image) -> Image.Image:
    """A mask as grey values 0 and 255.

    Raises:
        UserError: it is of another size than its picture, or has other values.
    """
    if mask.size != image.size:
        problem = "is {} x {} pixels".format(*mask.size) + " for an image of {} x {}".format(*image.size)
        raise UserError("sample.mask", problem, "make it as large")
    values = np.asarray(as_rgb(mask))
    others = np.setdiff1d(values, (0, WHITE))
    if others.size or (values != values[..., :1]).any():
        found = f"values such as {others[0]}" if others.size else "colours"
        raise UserError("sample.mask", f"has {found} beside black and white", "save it as PNG, without soft edges")
    return Image.fromarray(values[..., 0])

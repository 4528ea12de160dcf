"""What decides a picture: class, settings, and what it keeps of another; all of it goes into its PNG."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydantic import Field, model_validator

from sfd_cli import __version__
from sfd_cli.artifacts.sample_folder import CHUNK, as_text
from sfd_cli.config import Sample, Section
from sfd_cli.errors import SettingError, UserError
from sfd_cli.files import fingerprint
from sfd_cli.pipeline.arguments import NOT_OF_A_CALL, as_section
from sfd_cli.pipeline.held import Rectangle, StreamNames

DEEPEST = 20
"""Pictures that keep a part of one that keeps a part of one ..."""


class Kept(Section):
    """A part of another picture that a picture keeps."""

    of: Picture = Field(description="the other picture")
    streams: StreamNames = Field("both", description="of which latent")
    cells: Rectangle | None = Field(None, description="first and last row, first and last column; unset: all cells")
    inside: bool = Field(True, description="whether the rectangle is kept, or all but the rectangle")

    @model_validator(mode="after")
    def _cells_are_ordered(self) -> Kept:
        top, bottom, left, right = self.cells or (0, 0, 0, 0)
        if not (0 <= top <= bottom and 0 <= left <= right):
            raise SettingError("cells", f"{self.cells} is no rectangle", "give first and last row and column")
        return self


class Picture(Section):
    """All that decides a picture of a given model: image 0 of `sfd sample` with these settings, if nothing is kept."""

    label: int = Field(ge=0, description="class")
    sample: Sample = Field(description="the settings of sampling, the seed among them")
    kept: Kept | None = Field(None, description="what it keeps of another picture")

    def as_plain(self) -> dict[str, Any]:
        """Its settings for JSON, without those that decide nothing."""
        unused = {*NOT_OF_A_CALL, "batch_size", "protocol"}
        plain: dict[str, Any] = {
            "label": self.label,
            "sample": self.sample.model_dump(mode="json", exclude=unused, exclude_none=True),
        }
        if self.kept is not None:
            rest = self.kept.model_dump(mode="json", exclude={"of"}, exclude_none=True)
            plain["kept"] = {"of": self.kept.of.as_plain()} | rest
        return plain

    @property
    def key(self) -> str:
        """Equal for pictures of equal settings, whatever order they were given in."""
        return fingerprint(self.as_plain())


def as_png(image: np.ndarray, picture: Picture, about: dict[str, Any]) -> bytes:
    """A PNG of an image (H, W, 3) uint8 with its picture's settings inside, in the text chunk `sfd`.

    Args:
        image: what the picture looks like.
        picture: what decides it.
        about: of what model it is; JSON-able.
    """
    text = as_text({"version": __version__, **about, "picture": picture.as_plain()})
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


def read_png(content: bytes, name: str = "the file") -> tuple[Picture, dict[str, Any]]:
    """The settings inside a PNG that `as_png` made, and what it says about the model.

    Raises:
        UserError: it is no PNG, or holds no such settings.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()  # a text chunk may come after the pixels
            found = json.loads(getattr(image, "text", {})[CHUNK])
        plain = found.pop("picture")
    except (UnidentifiedImageError, OSError, SyntaxError):
        raise UserError(name, "is no whole image", "give a PNG saved by `sfd play`") from None
    except (KeyError, ValueError, TypeError, AttributeError):
        raise UserError(name, "holds no settings of a picture", "give a PNG saved by `sfd play`") from None
    return as_picture(plain, name), found


def as_picture(plain: Any, name: str) -> Picture:
    """A picture from plain values, called `name` in errors.

    Raises:
        UserError: they are not those of a picture.
    """
    if _depth(plain) > DEEPEST:
        raise UserError(name, f"goes back to more than {DEEPEST} pictures", "begin with one that keeps less")
    return as_section(Picture, plain, name)


def _depth(plain: Any) -> int:
    """How many pictures plain values go back to, the first included."""
    depth = 0
    while isinstance(plain, Mapping):
        kept = plain.get("kept")
        plain, depth = kept.get("of") if isinstance(kept, Mapping) else None, depth + 1
    return depth

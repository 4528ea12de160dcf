"""What the controls of the page say, as pictures, and pictures as what the controls say."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from sfd_cli.errors import UserError
from sfd_cli.pipeline.held import Rectangle, StreamNames
from sfd_cli.pipeline.sampler import guidance_scale
from sfd_cli.play.picture import Kept, Picture, as_picture, read_png
from sfd_cli.play.studio import Studio, Tell
from sfd_cli.play.view import tell_kept, view

Keeping = Literal["nothing", "semantics", "textures", "rectangle", "all but a rectangle"]
SEEDS = 100_000
"""Seeds that the dice gives are below this."""


class Settings(NamedTuple):
    """The controls of one side, in the order of the page.

    Attributes:
        label: class.
        seed: of the noise.
        ahead: offset or lead; of no effect where the model has neither.
        guidance: none, cfg or autoguidance.
        scale: of the guidance.
        steps: of the solver.
    """

    label: int
    seed: float
    ahead: float
    guidance: str
    scale: float
    steps: float


class Keep(NamedTuple):
    """The controls about what B keeps of A.

    Attributes:
        what: of A.
        streams: of a rectangle: both, textures or semantics.
        top: first row, counted from 1.
        bottom: last row.
        left: first column.
        right: last column.
    """

    what: Keeping
    streams: StreamNames
    top: float
    bottom: float
    left: float
    right: float

    @property
    def cells(self) -> Rectangle | None:
        """The rectangle, counted from 0; None where there is none.

        Raises:
            UserError: a number is missing, or they are no rectangle.
        """
        if "rectangle" not in self.what:
            return None
        numbers = [_whole(number, "cells") - 1 for number in self[2:]]
        top, bottom, left, right = numbers
        if not (0 <= top <= bottom and 0 <= left <= right):
            raise UserError("cells", "rows and columns go from the lower number to the higher, from 1 on")
        return top, bottom, left, right


def own_settings(studio: Studio) -> Settings:
    """What the controls say before anybody has moved them: the model's own settings."""
    return settings_of(studio, Picture(label=0, sample=studio.sampler.sample))


def settings_of(studio: Studio, picture: Picture) -> Settings:
    """What the controls say of a picture."""
    sample = picture.sample
    ahead = 0.0 if studio.ahead is None else getattr(sample, studio.ahead.key) or 0.0
    scale = guidance_scale(sample).texture
    return Settings(picture.label, sample.seed, ahead, sample.guidance, scale, sample.steps)


def picture_of(studio: Studio, said: Settings, origin: Picture | None = None, kept: Kept | None = None) -> Picture:
    """The picture that the controls of a side describe.

    Args:
        studio: the model.
        said: the controls.
        origin: gives the settings that have no control; None: the model's own.
        kept: what it keeps of another.

    Raises:
        UserError: a number is missing or not acceptable.
    """
    for name, value in (("class", said.label), ("guidance scale", said.scale)):
        if value is None:
            raise UserError(name, "is empty", "give one")
    base = origin or Picture(label=0, sample=studio.sampler.sample)
    changes: dict[str, Any] = {"guidance": said.guidance}
    changes |= {"seed": _whole(said.seed, "seed"), "steps": _whole(said.steps, "steps")}
    if studio.ahead is not None:
        changes[studio.ahead.key] = said.ahead
    if said.scale != settings_of(studio, base).scale:
        changes |= {"scale": said.scale, "scale_texture": None, "scale_semantic": None}
    return studio.picture(said.label, kept, base.sample, **changes)


def pair(studio: Studio, a: Settings, b: Settings, keep: Keep, origin: Any = None) -> tuple[Picture, Picture]:
    """Both pictures.

    Args:
        studio: the model.
        a: the controls of the first.
        b: the controls of the second.
        keep: what the second keeps of the first.
        origin: the picture that A was before its controls were moved, as plain values: A goes on keeping what that
            kept, and both have its settings that have no control. None: the model's own.

    Raises:
        UserError: a number is missing or not acceptable.
    """
    before = None if origin is None else as_picture(origin, "A")
    first = picture_of(studio, a, before, before.kept if before else None)
    if keep.what == "nothing":
        return first, picture_of(studio, b, before)
    cells = keep.cells
    streams: StreamNames = keep.streams if cells is not None else keep.what  # type: ignore[assignment]
    kept = Kept(of=first, streams=streams, cells=cells, inside=keep.what != "all but a rectangle")
    return first, picture_of(studio, b, before, kept)


def shown(studio: Studio, pictures: Sequence[Picture], tell: Tell = lambda part, what: None) -> dict[str, Any]:
    """Both pictures drawn, for the viewer.

    Raises:
        UserError: a picture is not one of this model's.
        StageFailure: one is not finite.
    """
    drawings = []
    for number, picture in enumerate(pictures):
        name = "AB"[number]

        def tell_one(part: float, what: str, number: int = number, name: str = name) -> None:
            tell((number + part) / len(pictures), f"{what} {name}")

        drawings.append(studio.draw(picture, tell_one))
    kept = pictures[-1].kept
    return {
        "sides": [view(studio, drawing, "AB"[number]) for number, drawing in enumerate(drawings)],
        "cells": None if kept is None else kept.cells,
        "drawn": " ".join(picture.key for picture in pictures),
    }


def opened(studio: Studio, content: bytes) -> tuple[Picture, str]:
    """The picture whose settings a PNG holds, and a remark where another model made it; the remark may be empty.

    Raises:
        UserError: the PNG holds none, or none of this model's.
    """
    picture, about = read_png(content)
    studio.require_drawable(picture)
    same = about.get("fingerprints") == studio.about["fingerprints"]
    return picture, "" if same else f"It was made by other weights, {about.get('model', 'unknown')}: it will differ."


def another_seed(seed: Any) -> int:
    """A seed that is not `seed`."""
    drawn = random.randrange(SEEDS)
    return drawn if drawn != seed else drawn + 1


def seed_beside(what: Keeping, a: float, b: float) -> float:
    """B's seed when it keeps `what` of A: on A's own noise it would be A once more, so the next one."""
    return b if what == "nothing" or a != b else b + 1


def note_of(studio: Studio, picture: Picture) -> str:
    """What a picture keeps, as a sentence; empty where it keeps nothing."""
    said = tell_kept(studio, picture)
    return f"A {said}." if said else ""


def _whole(number: float | None, name: str) -> int:
    if number is None or number != int(number):
        raise UserError(name, f"{'nothing' if number is None else number} is no whole number", "give one")
    return int(number)

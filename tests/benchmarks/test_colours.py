"""The measure of colours: scenes whose truth is exact, and scores that fall when colours do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import colours
import numpy as np
import pytest
import torch
from PIL import Image
from scenes import COLOURS, OBJECTS, Scene, scenes

COUNT = 120


@pytest.fixture(scope="module")
def drawn() -> list[Scene]:
    return list(scenes(COUNT, seed=0))


@pytest.fixture(scope="module")
def images(drawn: list[Scene]) -> np.ndarray:
    return np.stack([scene.image for scene in drawn])


def same(one: Scene, other: Scene) -> bool:
    pairs = zip(one.objects, other.objects, strict=True)
    return np.array_equal(one.image, other.image) and all(
        (a.name, a.colour, a.box) == (b.name, b.colour, b.box) and np.array_equal(a.mask, b.mask) for a, b in pairs
    )


def test_a_scene_depends_on_the_seed_and_its_number_alone(drawn: list[Scene]) -> None:
    assert all(same(*pair) for pair in zip(drawn[:6], scenes(6, seed=0), strict=True))
    assert not any(same(*pair) for pair in zip(drawn[:6], scenes(6, seed=1), strict=True))


def test_the_fill_of_an_object_has_its_colour_to_the_pixel(drawn: list[Scene]) -> None:
    for scene in drawn:
        for placed in scene.objects:
            code = COLOURS[placed.colour]
            assert np.array_equal(np.unique(scene.image[placed.mask], axis=0), [list(bytes.fromhex(code[1:]))])
            assert placed.mask.sum() >= 20


def test_the_mask_has_every_pixel_of_the_fill_and_no_edge(drawn: list[Scene]) -> None:
    """Against the image alone, for a heart, which has no other part of its colour."""
    hearts = [(scene, placed) for scene in drawn for placed in scene.objects if placed.name == "heart"]
    assert hearts
    for scene, placed in hearts:
        left, top, side = placed.box
        part = scene.image[top : top + side, left : left + side]
        exact = (part == list(bytes.fromhex(COLOURS[placed.colour][1:]))).all(axis=2)
        assert np.array_equal(placed.mask[top : top + side, left : left + side], exact)
        assert placed.mask.sum() == exact.sum()


def test_two_objects_differ_and_stand_apart(drawn: list[Scene]) -> None:
    sides = set()
    for scene in drawn[1::2]:
        one, two = scene.objects
        assert one.name != two.name
        assert one.colour != two.colour
        assert not (one.mask & two.mask).any()
        apart = [one.box[axis] + one.box[2] <= two.box[axis] for axis in (0, 1)]
        assert any(apart)
        sides.add(apart.index(True))
    assert sides == {0, 1}
    assert all(len(scene.objects) == 1 for scene in drawn[::2])


def test_all_objects_and_colours_appear(drawn: list[Scene]) -> None:
    placed = [one for scene in drawn for one in scene.objects]
    assert {one.name for one in placed} == set(OBJECTS)
    assert {one.colour for one in placed} == set(COLOURS)
    assert (len(OBJECTS), len(COLOURS)) == (16, 8)


def test_cielab_has_the_published_values() -> None:
    """Bruce Lindbloom's for sRGB under D65."""
    found = colours.lab(np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0]], dtype=np.uint8))
    red, green, blue = (53.2408, 80.0925, 67.2032), (87.7347, -86.1827, 83.1793), (32.2970, 79.1875, -107.8602)
    assert np.allclose(found, [red, green, blue, (100, 0, 0), (0, 0, 0)], atol=0.02)


def test_the_images_themselves_are_right_in_all(drawn: list[Scene], images: np.ndarray) -> None:
    found = colours.score(drawn, images)
    assert [found[key] for key in ("objects", "one", "two", "scenes", "pixels")] == [1.0] * 5
    assert found["distance"] < 1e-9
    counts = np.array(found["confusion"])
    assert np.array_equal(counts, np.diag(np.diag(counts)))
    assert counts.sum() == COUNT * 3 // 2
    assert set(found["of object"].values()) == {1.0}


def test_without_colour_hardly_more_than_chance_is_left(drawn: list[Scene], images: np.ndarray) -> None:
    without = colours.grey(images)
    assert np.allclose(colours.lab(without)[..., 1:], 0, atol=0.01)
    assert np.abs(colours.lab(without)[..., 0] - colours.lab(images)[..., 0]).max() < 0.3
    assert colours.score(drawn, without)["objects"] < 0.35


def test_colours_that_are_exchanged_fall_where_they_are_others(drawn: list[Scene], images: np.ndarray) -> None:
    """Red and blue for each other: red things become blue, green ones stay green."""
    found = colours.score(drawn, images[..., ::-1])
    counts = dict(zip(COLOURS, found["confusion"], strict=True))
    names = list(COLOURS)
    assert counts["green"][names.index("green")] == sum(counts["green"])
    assert counts["yellow"][names.index("yellow")] == 0
    assert found["objects"] < 0.4


def test_one_wrong_object_of_two_makes_its_scene_wrong() -> None:
    pair = list(scenes(2, seed=0))
    images = np.stack([scene.image for scene in pair])
    wrong = pair[1].objects[0]
    images[1][wrong.mask] = list(bytes.fromhex(COLOURS["pink" if wrong.colour != "pink" else "red"][1:]))
    found = colours.score(pair, images)
    assert (found["objects"], found["one"], found["two"], found["scenes"]) == (2 / 3, 1, 1 / 2, 1 / 2)
    assert found["pixels"] == pytest.approx(2 / 3)


def test_scenes_too_small_for_a_fill_are_refused() -> None:
    with pytest.raises(ValueError, match="48"):
        next(scenes(1, seed=0, size=32))


class Mirror:
    """A codec that keeps the images but for their sign in the latent."""

    def to(self, _device: torch.device) -> Mirror:
        return self

    def eval(self) -> Mirror:
        return self

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert images.shape[1:] == (3, 64, 64)
        assert images.abs().max() <= 1
        return -images, images

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return -latents


def test_images_come_through_a_codec_in_their_order(images: np.ndarray) -> None:
    assert np.array_equal(colours.through(Mirror(), images, torch.device("cpu")), images)


def test_the_script_scores_a_model_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tiny_project import tiny_settings, write_models

    settings = tiny_settings(tmp_path)
    write_models(settings)
    sizes = ["--scenes", "8", "--seed", "3", "--device", "cpu", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["colours.py", "--codec", str(settings.paths.texture_vae), *sizes])
    colours.main()
    found: dict[str, Any] = json.loads((tmp_path / "colours-cpu.json").read_text())
    assert found["scores"]["images"]["objects"] == 1
    assert found["scores"]["codec"]["objects"] < 0.7
    assert found["settings"] | {"seed": 3, "scenes": 8} == found["settings"]
    assert "repetitions" not in found["settings"]
    assert Image.open(tmp_path / "colours.png").size == (4 * 128, 4 * 128)
    assert "rows are true colours" in capsys.readouterr().out

"""From what controls say to pictures and back, without a page."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from refusals import refusal
from tiny_project import CLASSES

from sfd_cli.config import Sample
from sfd_cli.play import controls
from sfd_cli.play.controls import Keep, Settings
from sfd_cli.play.picture import Picture, as_png, read_png
from sfd_cli.play.studio import Studio

ALL = Keep("nothing", "both", 1, 1, 1, 2)


def test_untouched_controls_say_the_models_own_settings(studio: Studio) -> None:
    own = controls.own_settings(studio)
    assert own == Settings(label=0, seed=0, ahead=0.3, guidance="cfg", scale=1.5, steps=6)
    untouched = Picture(label=0, sample=studio.sampler.sample)
    assert controls.picture_of(studio, own).as_plain() == untouched.as_plain()


def test_controls_say_what_a_picture_is_and_the_picture_comes_back(studio: Studio) -> None:
    said = Settings(2, 9, 0.55, "none", 2.25, 11)
    assert controls.settings_of(studio, controls.picture_of(studio, said)) == said


def test_scales_of_each_stream_stay_until_the_scale_is_moved(studio: Studio) -> None:
    base = Picture(
        label=0, sample=studio.sampler.sample.model_copy(update={"scale_texture": 2.0, "scale_semantic": 3.0})
    )
    said = controls.settings_of(studio, base)
    assert said.scale == 2.0
    kept = controls.picture_of(studio, said, base).sample
    assert (kept.scale_texture, kept.scale_semantic) == (2.0, 3.0)
    moved = controls.picture_of(studio, said._replace(scale=2.5), base).sample
    assert (moved.scale, moved.scale_texture, moved.scale_semantic) == (2.5, None, None)


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (Keep("semantics", "both", 1, 1, 1, 2), {"streams": "semantics", "inside": True}),
        (Keep("textures", "semantics", 1, 1, 1, 2), {"streams": "textures", "inside": True}),
        (Keep("rectangle", "both", 1, 1, 1, 2), {"streams": "both", "cells": [0, 0, 0, 1], "inside": True}),
        (
            Keep("all but a rectangle", "textures", 2, 2, 1, 1),
            {"streams": "textures", "cells": [1, 1, 0, 0], "inside": False},
        ),
    ],
)
def test_b_keeps_of_a_what_is_chosen(studio: Studio, keep: Keep, expected: dict[str, Any]) -> None:
    own = controls.own_settings(studio)
    a, b = controls.pair(studio, own, own._replace(seed=4, label=1), keep)
    assert a.kept is None
    kept = b.as_plain()["kept"]
    assert kept.pop("of") == a.as_plain()
    assert kept == expected
    assert (b.label, b.sample.seed) == (1, 4)


def test_nothing_is_kept_where_nothing_is_chosen(studio: Studio) -> None:
    own = controls.own_settings(studio)
    a, b = controls.pair(studio, own, own._replace(ahead=0.0), ALL)
    assert b.kept is None
    assert (a.sample.delta_t, b.sample.delta_t) == (0.3, 0.0)
    assert a.sample.seed == b.sample.seed


def test_a_goes_on_keeping_what_it_kept_and_both_have_its_other_settings(studio: Studio) -> None:
    own = controls.own_settings(studio)
    _, origin = controls.pair(studio, own, own._replace(seed=1), Keep("semantics", "both", 1, 1, 1, 1))
    shifted = origin.model_copy(update={"sample": origin.sample.model_copy(update={"shift": 0.5})})
    said = controls.settings_of(studio, shifted)
    a, b = controls.pair(studio, said, said._replace(seed=2), Keep("textures", "both", 1, 1, 1, 1), shifted.as_plain())
    assert a.key == shifted.key
    assert b.sample.shift == 0.5
    assert b.kept is not None
    assert b.kept.of.key == shifted.key
    moved, _ = controls.pair(studio, said._replace(seed=5), said, ALL, shifted.as_plain())
    assert moved.sample.seed == 5
    assert moved.as_plain()["kept"] == shifted.as_plain()["kept"]


@pytest.mark.parametrize(
    ("change", "subject"),
    [
        ({"seed": None}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"seed": -1}, "sample.seed"),
        ({"steps": 0}, "sample.steps"),
        ({"ahead": 2.0}, "sample.delta_t"),
        ({"scale": None}, "guidance scale"),
        ({"label": None}, "class"),
    ],
)
def test_numbers_that_do_not_hold_are_refused(studio: Studio, change: dict[str, Any], subject: str) -> None:
    with refusal(subject):
        controls.picture_of(studio, controls.own_settings(studio)._replace(**change))


@pytest.mark.parametrize("cells", [(0, 1, 1, 1), (2, 1, 1, 1), (1, 1, None, 1), (1, 1, 1, 3)])
def test_a_rectangle_that_is_none_or_outside_is_refused(studio: Studio, cells: tuple[Any, ...]) -> None:
    own = controls.own_settings(studio)
    with refusal("cells"):
        controls.pair(studio, own, own, Keep("rectangle", "both", *cells))


def test_the_viewer_is_given_both_with_the_settings_inside_the_last_frame(studio: Studio) -> None:
    own = controls.own_settings(studio)
    pictures = controls.pair(studio, own, own._replace(seed=1, label=2), Keep("rectangle", "both", 1, 1, 1, 2))
    told: list[tuple[float, str]] = []
    shown = controls.shown(studio, pictures, lambda part, what: told.append((part, what)))
    assert [side["name"] for side in shown["sides"]] == ["A", "B"]
    assert shown["cells"] == (0, 0, 0, 1)
    assert [part for part, _ in told] == sorted(part for part, _ in told)
    assert {what for _, what in told} == {"drawing A", "decoding A", "drawing B", "decoding B"}
    for side, picture in zip(shown["sides"], pictures, strict=True):
        assert len(side["frames"]) == len(side["maps"]) == len(side["parts"]) == len(side["readings"]) > 5
        assert (side["parts"][0], side["parts"][-1]) == (0, 1)
        png = base64.b64decode(side["frames"][-1].removeprefix("data:image/png;base64,"))
        found, about = read_png(png)
        assert found.key == picture.key
        assert about["fingerprints"] == {"dit": "abc"}
    assert CLASSES[2] in shown["sides"][1]["title"]
    assert "rows 1 to 1, columns 1 to 2" in shown["sides"][1]["told"]
    assert CLASSES[0] in shown["sides"][1]["told"]


def test_a_saved_png_is_drawn_again_as_it_was(studio: Studio) -> None:
    own = controls.own_settings(studio)
    _, picture = controls.pair(studio, own, own._replace(seed=1), Keep("semantics", "both", 1, 1, 1, 1))
    drawn = studio.draw(picture)
    found, remark = controls.opened(studio, as_png(drawn.image, picture, studio.about))
    assert remark == ""
    again = Studio(studio.sampler).draw(found)
    assert np.array_equal(again.image, drawn.image)


def test_a_png_of_other_weights_is_remarked_and_one_of_other_classes_refused(studio: Studio) -> None:
    picture, image = controls.picture_of(studio, controls.own_settings(studio)), np.zeros((2, 2, 3), np.uint8)
    about = {"model": "models/another", "fingerprints": {"dit": "other"}}
    assert "models/another" in controls.opened(studio, as_png(image, picture, about))[1]
    with refusal("class", 9):
        controls.opened(studio, as_png(image, Picture(label=9, sample=Sample()), about))


def test_a_new_seed_is_new() -> None:
    seeds = {controls.another_seed(3) for _ in range(50)}
    assert 3 not in seeds
    assert len(seeds) > 10


def test_bs_seed_goes_apart_only_where_b_would_be_a_once_more() -> None:
    assert controls.seed_beside("semantics", 4, 4) == 5
    assert controls.seed_beside("semantics", 4, 7) == 7
    assert controls.seed_beside("nothing", 4, 4) == 4

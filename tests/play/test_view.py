"""The picture of the schedule and the words beside it."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from sfd_cli.diffusion.laws import LeadSchedule
from sfd_cli.diffusion.schedule import AsynchronousSchedule
from sfd_cli.play.studio import Studio
from sfd_cli.play.view import HEIGHT, WIDTH, draw_schedule, file_name, read


def test_a_reading_has_both_times_and_the_phase_that_is_on() -> None:
    schedule = AsynchronousSchedule(0.3)
    assert read(schedule, 0.15, True) == "T 0.15 · textures 0% · semantics 15% · semantics only"
    assert read(schedule, 0.3, True) == "T 0.30 · textures 0% · semantics 30% · both"
    assert read(schedule, 1.3, True) == "T 1.30 · textures 100% · semantics 100% · textures only"
    assert read(AsynchronousSchedule(0.0), 0.5, False) == "T 0.50 · textures 50%"


def test_phases_are_as_wide_as_they_last_and_lines_are_both_times() -> None:
    root = ElementTree.fromstring(draw_schedule(AsynchronousSchedule(0.25), True))
    widths = [float(part.attrib["width"]) for part in root.iter("rect")]
    assert widths == pytest.approx([WIDTH * 0.2, WIDTH * 0.6, WIDTH * 0.2], abs=0.1)
    semantic, texture = (
        [tuple(map(float, pair.split(","))) for pair in part.attrib["points"].split()] for part in root.iter("polyline")
    )
    low, high = HEIGHT - 2, HEIGHT - 2 - (HEIGHT - 18)
    assert (semantic[0][1], semantic[80][1], semantic[100][1]) == pytest.approx((low, high, high), abs=0.1)
    assert (texture[0][1], texture[20][1], texture[100][1]) == pytest.approx((low, low, high), abs=0.1)
    assert texture[60][1] == pytest.approx((low + high) / 2, abs=0.1)
    assert [text.text for text in root.iter("text")] == ["semantics only", "both", "textures only"]
    (now,) = root.iter("line")
    assert now.attrib["class"] == "now"


def test_without_semantics_there_is_one_line_and_no_phase() -> None:
    root = ElementTree.fromstring(draw_schedule(AsynchronousSchedule(0.0), False))
    assert len(list(root.iter("polyline"))) == 1
    assert not list(root.iter("rect"))


def test_a_phase_too_narrow_for_its_name_has_none() -> None:
    root = ElementTree.fromstring(draw_schedule(AsynchronousSchedule(0.02), True))
    assert [text.text for text in root.iter("text")] == ["both"]
    assert len(list(ElementTree.fromstring(draw_schedule(LeadSchedule(1.0), True)).iter("rect"))) == 1


def test_files_are_called_by_class_seed_and_what_else_decides_them(studio: Studio) -> None:
    names = {file_name(studio, studio.picture(1, seed=7, steps=steps)) for steps in (3, 4)}
    assert len(names) == 2
    assert all(re.fullmatch(r"squares-7-[0-9a-f]{6}\.png", name) for name in names)

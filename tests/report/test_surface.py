"""The schedule that was learned, on the page: its picture, what is said of it, and what is said where it is damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from tiny_project import tiny_settings

from sfd_cli.artifacts.learned_law import LAW, SURFACE, read_surface, save_law, save_surface
from sfd_cli.artifacts.recipe import Record
from sfd_cli.config import Settings
from sfd_cli.diffusion.latents import Streams
from sfd_cli.diffusion.path_criterion import ErrorSurface, Preference
from sfd_cli.files import write_json
from sfd_cli.report import parts, surface
from sfd_cli.stages import report

LEVELS = torch.linspace(-4, 2.2, 5)
CURVE = {"schedule": "curve", "lead": 0.75, "lead_slope": -1.5}
NONE = {"schedule": "offset", "delta_t": 0.0}
LEAD = {"schedule": "lead", "lead": 0.75}
FOUND = Preference(0.75, -85.7, 4.7, -92.3, -86.1, 3742.4, -12.7, 3.1)
LEARNED: dict[str, Any] = {"dit": {"schedule": "learned"}, "schedule": {"learn": True}}


def errors(images: int = 6) -> ErrorSurface:
    """Of textures 10 plus both levels' numbers, of semantics 20 plus their product; the same for all images."""
    rows, columns = torch.meshgrid(torch.arange(5.0), torch.arange(5.0), indexing="ij")
    both = Streams((rows + columns + 10).expand(images, 5, 5), (rows * columns + 20).expand(images, 5, 5))
    return ErrorSurface(LEVELS, both, torch.arange(images) // 2, semantic_end=0.5)


def learn(settings: Settings, law: dict[str, Any] = LEAD) -> Path:
    """`models/schedule` as `sfd learn-schedule` leaves it."""
    folder = settings.paths.schedule
    folder.mkdir(parents=True)
    save_surface(folder, errors(), errors(), errors(4), Streams(torch.ones(5, 5), torch.ones(5, 5)))
    save_law(folder, law)
    Record(fingerprint="learned", complete=True, facts={"law": law} | FOUND._asdict() | {"images": 6}).write(folder)
    return folder


def page(settings: Settings) -> str:
    report.run(settings)
    return (settings.paths.reports / "index.html").read_text(encoding="utf-8")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures in the place of files."""
    figures: list[Figure] = []
    monkeypatch.setattr(surface, "write_figure", lambda figure, path: figures.append(figure))
    return figures


def test_the_page_shows_the_schedule_that_was_learned_and_by_how_much_it_is_better(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, **LEARNED)
    learn(settings)
    text = page(settings)
    assert text.count("data:image/png;base64,") == 1
    assert '<a href="#schedule">' in text
    told = text.split('<section id="schedule">')[1].split("</section>")[0]
    for words in (
        "<td>lead 0.75</td>",
        "6 images, 3 that are not alike",
        "3742 nats",
        "-85.7 ± 4.7",
        "-86.1",
        "-92.3",
        "-12.7 ± 3.1",
    ):
        assert words in told, words
    assert "The transformer is trained along it." in told
    assert "Warning" not in told
    picture = settings.paths.reports / "schedule.png"
    before = picture.read_bytes()
    assert page(settings).count(told) == 1
    assert picture.read_bytes() == before


def test_a_schedule_that_is_not_followed_is_not_said_to_be(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, schedule={"learn": True})
    learn(settings)
    assert "not trained along it" in page(settings)


def test_without_a_learned_schedule_there_is_nothing_of_it(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    assert "schedule that was learned" not in page(settings)
    settings.paths.schedule.mkdir(parents=True)
    Record(fingerprint="none", complete=True).write(settings.paths.schedule)  # where schedule.learn is false
    assert "schedule that was learned" not in page(settings)


@pytest.mark.parametrize("damaged", [SURFACE, LAW])
def test_a_damaged_schedule_is_named_on_the_page(
    tmp_path: Path, damaged: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tiny_settings(tmp_path, **LEARNED)
    folder = learn(settings)
    (folder / damaged).write_bytes(b"[]")
    text = page(settings)
    assert str(folder / damaged) in text
    assert str(folder / damaged) in capsys.readouterr().err
    assert "data:image/png;base64," not in text


def test_errors_are_read_as_they_were_written(tmp_path: Path) -> None:
    found, expected = read_surface(learn(tiny_settings(tmp_path))), errors()
    torch.testing.assert_close(found.levels, expected.levels)
    assert torch.equal(found.clusters, expected.clusters)
    assert found.semantic_end == 0.5
    for one, other in zip(found.errors, expected.errors, strict=True):
        assert torch.equal(one, other)


def test_the_picture_is_drawn_of_the_errors_and_the_law_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings(tmp_path, **LEARNED)
    write_json(learn(settings) / LAW, {"schedule": "curve", "lead": 1.25, "lead_slope": 0.5})
    given: list[Any] = []
    monkeypatch.setattr(parts, "draw_surface", lambda path, *found: (given.extend(found), path.write_bytes(b""))[0])
    told = parts.learned_schedule(settings, tmp_path / "picture.png")
    assert told is not None
    assert torch.equal(given[0].errors.semantic, errors().errors.semantic)
    assert given[1:] == [{"schedule": "curve", "lead": 1.25, "lead_slope": 0.5}, FOUND]
    assert dict(told["rows"])["schedule"] == "lead 1.25, slope 0.5"


def test_colours_are_errors_over_their_mean_over_the_other_streams_levels(tmp_path: Path, drawn: list[Figure]) -> None:
    surface.draw_surface(tmp_path / "picture.png", errors(), CURVE, FOUND)
    of_textures, of_semantics = drawn[0].axes[:2]
    rows, columns = np.meshgrid(np.arange(5.0), np.arange(5.0), indexing="ij")
    for axes, expected in (
        (of_textures, 100 * ((rows + columns + 10) / (rows + 12) - 1)),
        (of_semantics, 100 * ((rows * columns + 20) / (2 * columns + 20) - 1)),
    ):
        (mesh,) = axes.collections
        values = mesh.get_array()
        assert values is not None
        np.testing.assert_allclose(np.asarray(values).reshape(5, 5), expected, atol=1e-6)
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("logit time of semantics", "logit time of textures")


def test_the_chosen_path_goes_from_corner_to_corner_with_its_lead(tmp_path: Path, drawn: list[Figure]) -> None:
    surface.draw_surface(tmp_path / "picture.png", errors(), CURVE, FOUND)
    for axes in drawn[0].axes[:2]:
        _, chosen, end = axes.lines
        assert list(end.get_xdata()) == [0.5, 0.5]
        semantic, texture = (np.asarray(values, float) for values in (chosen.get_xdata(), chosen.get_ydata()))
        np.testing.assert_allclose([semantic[0], texture[0], semantic[-1], texture[-1]], [-4, -4, 2.2, 2.2], atol=1e-6)
        inside = (np.abs(semantic + 0.9) < 3.09) & (np.abs(texture + 0.9) < 3.09)
        assert inside.sum() > 100
        expected = 0.75 - 1.5 * np.tanh((semantic + texture)[inside] / 4)
        np.testing.assert_allclose((semantic - texture)[inside], expected, atol=1e-6)


def test_without_a_preference_the_synchronous_path_alone_is_drawn_and_said(tmp_path: Path, drawn: list[Figure]) -> None:
    surface.draw_surface(tmp_path / "picture.png", errors(), NONE, FOUND)
    figure = drawn[0]
    assert [len(axes.lines) for axes in figure.axes[:2]] == [2, 2]
    assert "no clear preference" in figure.get_suptitle()
    rows = dict(surface.surface_summary(NONE, FOUND, 6, errors()))
    assert rows["schedule"] == "no clear preference, so synchronous"


@pytest.mark.parametrize(("law", "subtitle"), [(LEAD, "textures following"), (NONE, "is compared with")])
def test_the_page_is_about_what_was_learned_and_not_about_the_word(
    tmp_path: Path, law: dict[str, Any], subtitle: str
) -> None:
    settings = tiny_settings(tmp_path, **LEARNED)
    learn(settings, law)
    assert subtitle in page(settings)

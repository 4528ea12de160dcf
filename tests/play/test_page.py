"""The page in a real browser, clicked through by what a person sees, and its pictures looked at pixel by pixel.

The first two tests are in the usual run, the others, of all its controls, are slow.
"""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_project import CLASSES, tiny_settings, write_models

from sfd_cli.pipeline.models import SamplingModels
from sfd_cli.play import serve
from sfd_cli.play.picture import read_png
from sfd_cli.play.studio import Studio

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytest.importorskip("gradio", reason="gradio (the extra `play`) is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright (the extra `dev`) is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH (Debian: apt-get install chromium)")


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    settings = tiny_settings(tmp_path_factory.mktemp("project"), sample={"steps": 6})
    write_models(settings)
    studio = Studio(SamplingModels.open(settings).load(settings.sample, torch.device("cpu")))
    with torch.no_grad():
        for parameter in studio.sampler.dit.parameters():
            parameter *= 5
    return studio


@pytest.fixture(scope="module")
def address(studio: Studio) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            patch.delenv(name, raising=False)
        page, url = serve.start(studio, serve.free_port(None))
    yield url
    page.close(verbose=False)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        # A container has neither the rights for Chromium's sandbox nor much shared memory.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = started.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


class Visitor:
    """A person at the page, who has turned animations off."""

    def __init__(self, browser: Any, address: str, width: int = 1280, height: int = 900) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": height}, reduced_motion="reduce")
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda line: line.type == "error" and self.complaints.append(line.text))
        self.page.goto(address)
        self.wait("")

    def find(self, selector: str) -> Any:
        return self.page.locator(selector)

    @property
    def drawn(self) -> str:
        """Keys of the pictures that are shown."""
        found = self.page.evaluate("(document.querySelector('#viewer [data-drawn]') || {dataset: {}}).dataset.drawn")
        return found or ""

    def wait(self, before: str) -> None:
        """Until other pictures are shown."""
        condition = (
            "before => {const at = document.querySelector('#viewer [data-drawn]');"
            " return at && at.dataset.drawn && at.dataset.drawn !== before}"
        )
        self.page.wait_for_function(condition, arg=before, timeout=60_000)

    def after(self, act: Any) -> None:
        before = self.drawn
        act()
        self.wait(before)

    def shown(self, side: int, which: str = "picture") -> np.ndarray:
        """The image that a side shows: what the browser has, (h, w, 3)."""
        uri = self.find(f'.side[data-side="{side}"] img.{which}').get_attribute("src")
        content = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)

    def seen(self, side: int, which: str = "picture") -> np.ndarray:
        """What is on the screen in its place, once it has faded in: Gradio ignores a wish for less motion."""
        place = self.find(f'.side[data-side="{side}"] img.{which}')
        opaque = (
            "at => {for (; at; at = at.parentElement) if (getComputedStyle(at).opacity !== '1') return false;"
            " return true}"
        )
        self.page.wait_for_function(opaque, arg=place.element_handle())
        pixels = place.screenshot()
        return np.asarray(Image.open(io.BytesIO(pixels)).convert("RGB")).astype(int)

    def move(self, part: float) -> None:
        """Move along the way from noise."""
        self.page.evaluate(
            "part => {const way = document.querySelector('#viewer .scrub'); way.value = part;"
            " way.dispatchEvent(new Event('input', {bubbles: true}))}",
            part,
        )

    def text(self, side: int, which: str) -> str:
        return self.find(f'.side[data-side="{side}"] .{which}').inner_text()

    def choose(self, group: str, label: str) -> None:
        self.find(group).get_by_text(label, exact=True).click()


def inside_cells(screen: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of the screen (H, W, 3) well inside enlarged pixels of an image (h, w, 3), and what the image has there.

    The two sides of the page may begin at different fractions of a screen's pixel, and their corners are round.
    """
    places = []
    for seen, size in zip(screen.shape[:2], image.shape[:2], strict=True):
        at = (np.arange(seen) + 0.5) * size / seen
        places.append((np.abs(at - at.round()) * seen / size > 8, at.astype(int)))
    (rows, y), (columns, x) = places
    return screen[rows][:, columns], image[y[rows]][:, x[columns]]


@pytest.fixture
def visitor(browser: Any, address: str) -> Iterator[Visitor]:
    visitor = Visitor(browser, address)
    yield visitor
    visitor.page.close()


def test_a_picture_forms_beside_its_semantics_and_nothing_is_asked_of_others(
    visitor: Visitor, address: str, studio: Studio
) -> None:
    a = studio.draw(studio.picture(0, seed=0))
    assert np.array_equal(visitor.shown(0), a.image)
    for side in (0, 1):
        for which in ("picture", "map"):
            assert visitor.seen(side, which).std() > 10, "not blank"
    assert CLASSES[0] in visitor.text(0, "title")
    assert "T 1.30 · textures 100%" in visitor.text(0, "reading")
    last = visitor.seen(0)
    visitor.move(0)
    assert "T 0.00 · textures 0%" in visitor.text(0, "reading")
    assert np.array_equal(visitor.shown(0), a.textures[0])
    assert np.abs(visitor.seen(0) - last).mean() > 5
    colours = studio.colours(a)
    assert colours is not None
    assert np.array_equal(visitor.shown(0, "map"), colours[0])
    visitor.move(1)
    assert np.array_equal(visitor.seen(0), last)
    strangers = [url for url in visitor.asked if not url.startswith((address, "data:", "blob:"))]
    assert strangers == []
    assert visitor.complaints == []


def test_textures_are_drawn_anew_beside_the_same_semantics(visitor: Visitor) -> None:
    assert "keeps semantics of circles, seed 0" in visitor.text(1, "told")
    semantics, pictures = visitor.shown(0, "map"), [visitor.shown(1)]
    for _ in range(2):
        visitor.after(visitor.find("#dice-b").click)
        assert np.array_equal(visitor.shown(1, "map"), semantics)
        for side in (0, 1):
            painted, expected = inside_cells(visitor.seen(side, "map"), semantics)
            assert np.array_equal(painted, expected), "what is on the screen is the map"
        pictures.append(visitor.shown(1))
    assert all(np.abs(one - other).max() > 5 for one, other in pairwise(pictures))
    first = visitor.shown(0)
    visitor.after(visitor.find("#dice-a").click)
    assert np.abs(visitor.shown(0) - first).max() > 5, "another seed is another picture"
    assert np.abs(visitor.shown(0, "map") - semantics).max() > 20
    assert np.array_equal(visitor.shown(1, "map"), visitor.shown(0, "map"))
    visitor.after(lambda: visitor.choose("#keep", "its textures"))
    assert np.array_equal(visitor.shown(1), visitor.shown(0))
    assert np.abs(visitor.shown(1, "map") - visitor.shown(0, "map")).max() > 20


@pytest.mark.slow
def test_two_settings_stand_side_by_side_on_the_same_noise(visitor: Visitor, studio: Studio) -> None:
    visitor.after(lambda: visitor.choose("#keep", "nothing"))

    def same_seed() -> None:
        visitor.find("#seed-b input").fill("0")

    visitor.after(same_seed)
    assert np.array_equal(visitor.shown(0), visitor.shown(1))

    def synchronous() -> None:
        box = visitor.find("#ahead-b input[type=number]")
        box.fill("0.8")
        box.press("Enter")
        box.blur()

    visitor.after(synchronous)
    assert np.array_equal(visitor.shown(1), studio.draw(studio.picture(0, seed=0, delta_t=0.8)).image)
    assert "Δt 0.8" in visitor.text(1, "told")
    visitor.move(0)
    assert np.array_equal(visitor.shown(0), visitor.shown(1)), "the same noise"


@pytest.mark.slow
def test_a_rectangle_drawn_on_a_is_kept_in_b(visitor: Visitor, studio: Studio) -> None:
    frame = visitor.find('.side[data-side="0"] .frame').first
    frame.scroll_into_view_if_needed()
    box = frame.bounding_box()

    def drag() -> None:
        mouse, (x, y) = visitor.page.mouse, (box["x"], box["y"])
        mouse.move(x + 0.2 * box["width"], y + 0.7 * box["height"])
        mouse.down()
        mouse.move(x + 0.8 * box["width"], y + 0.8 * box["height"], steps=3)
        mouse.up()

    visitor.after(drag)
    assert "keeps all in rows 2 to 2, columns 1 to 2" in visitor.text(1, "told")
    keys = visitor.drawn.split()
    a, b = (studio.draw(studio._drawn[key].picture).recording.latents for key in keys)
    assert torch.equal(a[:, :, 1], b[:, :, 1])
    assert not torch.isclose(a[:, :, 0], b[:, :, 0]).any()
    values = [visitor.find(f"#cells-{place} input").input_value() for place in range(4)]
    assert values == ["2", "2", "1", "2"]

    visitor.after(lambda: visitor.choose("#streams", "semantics"))
    assert "keeps semantics in rows 2 to 2" in visitor.text(1, "told")
    visitor.find("#cells-0 input").fill("3")
    visitor.find(".toast-wrap").filter(has_text="cells").first.wait_for()


@pytest.mark.slow
def test_a_saved_picture_has_its_settings_inside_and_opens_again(visitor: Visitor, tmp_path: Path) -> None:
    with visitor.page.expect_download() as download:
        visitor.find('.side[data-side="1"] .save').click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    assert path.name.startswith(f"{CLASSES[0]}-1-")
    picture, _ = read_png(path.read_bytes())
    assert (picture.sample.seed, picture.kept is not None) == (1, True)
    saved = np.asarray(Image.open(path))
    assert np.array_equal(saved, visitor.shown(1))
    visitor.after(visitor.find("#dice-a").click)
    visitor.after(lambda: visitor.find("input[type=file]").set_input_files(path))
    assert np.array_equal(visitor.shown(0), saved)
    assert visitor.find("#seed-a input").input_value() == "1"
    assert "A keeps semantics of circles, seed 0" in visitor.find("#note").inner_text()
    other = tmp_path / "other.png"
    Image.new("RGB", (4, 4)).save(other)
    visitor.find("input[type=file]").set_input_files(other)
    visitor.find(".toast-wrap").filter(has_text="holds no settings").first.wait_for()


@pytest.mark.slow
def test_b_goes_to_as_place_and_is_let_go(visitor: Visitor) -> None:
    b, semantics = visitor.shown(1), visitor.shown(0, "map")
    visitor.after(visitor.find("#take").click)
    assert np.array_equal(visitor.shown(0), b)
    visitor.after(visitor.find("#dice-a").click)
    assert np.array_equal(visitor.shown(0, "map"), semantics), "A keeps what it kept as B"
    visitor.after(visitor.find("#release").click)
    assert np.abs(visitor.shown(0, "map") - semantics).max() > 20
    assert not visitor.find("#note").is_visible()


@pytest.mark.slow
def test_changes_wait_for_the_button_where_that_is_wanted(visitor: Visitor) -> None:
    visitor.find("#live input").uncheck()
    before = visitor.drawn
    visitor.choose("#keep", "nothing")
    visitor.find("#seed-b input").fill("5")
    visitor.page.wait_for_timeout(700)
    assert visitor.drawn == before
    visitor.after(visitor.find("#draw").click)
    assert "seed 5" in visitor.text(1, "title")


@pytest.mark.slow
def test_it_plays_the_way_from_noise_by_itself(visitor: Visitor) -> None:
    visitor.page.emulate_media(reduced_motion="no-preference")
    visitor.after(visitor.find("#dice-a").click)
    frames = "[...new Set(window.seenFrames)].length"
    visitor.page.evaluate(
        "window.seenFrames = [];setInterval(() => seenFrames.push(document.querySelector('.side').dataset.frame), 20)"
    )
    visitor.find(".play").click()  # stops
    visitor.find(".play").click()
    visitor.page.wait_for_function(f"{frames} >= 5", timeout=10_000)
    visitor.page.wait_for_function("document.querySelector('#viewer .scrub').value == 1", timeout=20_000)


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 390, 768, 1280, 1920])
def test_it_fits_phones_and_screens(browser: Any, address: str, width: int) -> None:
    visitor = Visitor(browser, address, width, 844)
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [visitor.find(f'.side[data-side="{side}"]').bounding_box() for side in (0, 1)]
    beside = boxes[0]["y"] == boxes[1]["y"]
    assert beside == (width >= 768)
    for box in boxes:
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    visitor.page.close()

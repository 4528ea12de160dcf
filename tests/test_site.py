"""The site of docs/: it builds without a warning and without a network, and its reference is that of the code."""

from __future__ import annotations

import importlib.util
import re
import shutil
import socket
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

from sfd_cli.config import Settings, section_type
from sfd_cli.tables import STAGES

REPOSITORY = Path(__file__).parents[1]
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "mkdocs.yml")


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository with pages that a test may change, and no network."""
    for entry in REPOSITORY.iterdir():
        if entry.name in PAGES:
            shutil.copy(entry, tmp_path)
        elif entry.name == "docs":
            shutil.copytree(entry, tmp_path / "docs")
        else:
            (tmp_path / entry.name).symlink_to(entry)

    def connect(*_: Any) -> None:
        raise AssertionError("something is fetched")

    monkeypatch.setattr(socket.socket, "connect", connect)
    return tmp_path


def built(root: Path) -> Path:
    build(load_config(str(root / "mkdocs.yml"), strict=True, site_dir=str(root / "built")))
    return root / "built"


class Needs(HTMLParser):
    """What a page loads when it is looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = dict(attrs)
        if tag in ("script", "img"):
            self.places.add(said.get("src") or "")
        if tag == "link" and said.get("rel") != "canonical":
            self.places.add(said.get("href") or "")


def test_the_site_builds_without_a_warning_and_its_pages_load_nothing_from_elsewhere(copy: Path) -> None:
    site = built(copy)
    pages = sorted(site.rglob("*.html"))
    assert {page.parent.name for page in pages} >= {"python", "commands", "settings", "changelog", "weights"}
    for page in pages:
        needs = Needs()
        needs.feed(page.read_text())
        for place in needs.places - {""}:
            assert "//" not in place, f"{page.name} loads {place}"
            path = place.split("?")[0]
            if page.name != "404.html":
                assert (page.parent / path).exists(), f"{page} shows {path}, which is not there"
    home = (site / "index.html").read_text()
    assert 'href="weights/"' in home
    assert 'href="changelog/"' in home
    assert "benchmarks/results/growth.png" in (site / "performance" / "index.html").read_text()


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("docs/weights.md", "[gone](no-such-page.md)"),
        ("README.md", "[gone](docs/weights.md#no-such-place)"),
        ("docs/unlisted.md", "# In no menu"),
    ],
)
def test_a_dead_link_or_a_page_in_no_menu_fails_the_build(copy: Path, page: str, text: str) -> None:
    path = copy / page
    path.write_text((path.read_text() if path.exists() else "") + f"\n{text}\n")
    with pytest.raises(Abort, match="1 warnings"):
        built(copy)


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    specification = importlib.util.spec_from_file_location("site_of_docs", REPOSITORY / "docs" / "site.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def row(text: str, heading: str, key: str) -> list[str]:
    """The cells of a row below a heading."""
    block = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    (line,) = [line for line in block.splitlines() if line.startswith(f"| `{key}`")]
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_the_reference_has_every_command_and_its_flags(hook: ModuleType) -> None:
    text = hook.command_reference()
    names = re.findall(r"^## `(.*)`$", text, re.MULTILINE)
    assert {f"sfd {stage}" for stage in STAGES} | {"sfd init", "sfd weights import", "sfd study run"} <= set(names)
    assert len(names) == len(set(names))
    assert row(text, "`sfd sample`", "--steps") == [
        "`--steps`",
        "`24`",
        Settings().sample.model_fields["steps"].description,
    ]
    assert row(text, "`sfd train`", "--repa-weight")[1] == f"`{Settings().dit.repa_weight}`"
    assert row(text, "`sfd weights export`", "SOURCE")[1] == "required"
    assert "sfd weights export SOURCE TARGET [OPTIONS]" in text
    assert "[bold]" not in text


def test_the_reference_has_every_setting_with_its_kind_limits_and_default(hook: ModuleType) -> None:
    text = hook.settings_reference()
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == list(Settings.model_fields)
    for name in Settings.model_fields:
        for key, field in section_type(Settings, name).model_fields.items():
            if not hasattr(field.annotation, "model_fields"):
                assert row(text, name, key)[0] == f"`{key}`"
    assert row(text, "sample", "delta_t")[1:3] == ["number, ≥ 0, ≤ 1", "unset"]
    assert row(text, "sample", "guidance")[1:3] == ["`none`, `cfg`, `autoguidance`", "`none`"]
    assert row(text, "sample", "classes")[1:3] == ["list of whole number or text", "unset"]
    assert row(text, "fid", "encoder.image_size")[1:3] == ["whole number, > 0", "`112`"]
    assert row(text, "images", "mirror")[1:3] == ["yes or no", "`true`"]
    assert row(text, "dit", "adapter")[1:3] == ["section of `rank`, `alpha`", "unset"]
    assert row(text, "dit", "adapter.rank")[1:3] == ["whole number, ≥ 0", "`16`"]

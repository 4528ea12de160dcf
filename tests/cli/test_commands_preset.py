"""`sfd preset` as people type it: presets listed, shown, and written without losing what was there."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from command_line import done, refusal_of
from refusals import require_refusal

from sfd_cli.config import load_settings
from sfd_cli.presets import FOLDER, list_presets

NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
FOLDERS = [
    "images",
    "my photos",
    "Fotos Zürich",
    "写真",
    "a'b",
    'say "cheese"',
    "key: value",
    "#1",
    "-",
    "100",
    "null",
]
PARAMS = Path("params.yaml")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def kept() -> list[str]:
    return sorted(path.name for path in Path().iterdir() if path.name.startswith("params.yaml."))


def test_the_list_names_every_preset_with_its_summary() -> None:
    lines = done("preset", "list").out.splitlines()
    assert [line.split(maxsplit=1)[0] for line in lines] == NAMES
    assert all(line.endswith(list_presets()[name]) for name, line in zip(NAMES, lines, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_shown_is_what_is_written_and_it_loads(name: str) -> None:
    shown = done("preset", "show", name).out
    said = done("preset", "use", name).out
    assert f"params.yaml holds the preset {name}" in said
    assert PARAMS.read_text() == shown == (FOLDER / f"{name}.yaml").read_text()
    load_settings()


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_of_any_name_is_put_in(here: Path, folder: str) -> None:
    Path(folder).mkdir()
    said = done("preset", "use", "imagenet256-xl", "--images", f"./{folder}").out
    assert str(here / folder) in said
    assert load_settings().images.folder == here / folder
    text, preset = PARAMS.read_text().splitlines(), (FOLDER / "imagenet256-xl.yaml").read_text().splitlines()
    different = [line for line, old in zip(text, preset, strict=True) if line != old]
    assert len(different) == 1, "all else stays, comments included"
    assert folder in different[0] or "'" in folder


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_takes_images_the_demo_too(here: Path, name: str) -> None:
    Path("mine").mkdir()
    done("preset", "use", name, "--images", "mine")
    images = load_settings().images
    assert (images.source, images.folder) == ("folder", here / "mine")


@pytest.mark.parametrize("name", ["photos.zip", "train-*.parquet"])
def test_archives_are_named_as_folders_are(here: Path, name: str) -> None:
    Path(name.replace("*", "0")).touch()
    done("preset", "use", "demo", "--images", name)
    assert load_settings().images.folder == here / name


def test_settings_of_ones_own_are_kept_under_other_names() -> None:
    for number, text in enumerate(("dit:\n  steps: 7\n", "# only a comment\n", "no: [yaml"), start=1):
        PARAMS.write_text(text)
        said = done("preset", "use", "demo").out
        assert f"what was in params.yaml is now in params.yaml.{number}" in said
        assert Path(f"params.yaml.{number}").read_text() == text
    assert kept() == ["params.yaml.1", "params.yaml.2", "params.yaml.3"]
    assert PARAMS.read_text() == (FOLDER / "demo.yaml").read_text()


def test_settings_that_are_not_even_text_are_kept_too() -> None:
    PARAMS.write_bytes(b"\xff\xfe\x00")
    done("preset", "use", "demo")
    assert Path("params.yaml.1").read_bytes() == b"\xff\xfe\x00"


def test_an_untouched_preset_is_replaced_silently() -> None:
    for name in (*NAMES, NAMES[0]):
        assert len(done("preset", "use", name).out.splitlines()) == 1
    assert kept() == []


def test_the_same_preset_with_the_same_images_changes_nothing() -> None:
    Path("mine").mkdir()
    for _ in range(2):
        done("preset", "use", "imagenet256-xl", "--images", "mine")
    assert kept() == []
    done("preset", "use", "demo")
    assert kept() == ["params.yaml.1"], "a folder that was filled in is a setting of one's own"


def test_another_file_may_be_written() -> None:
    PARAMS.write_text("dit:\n  steps: 7\n")
    done("preset", "use", "dit-xl2", "--params", "settings/other.yaml")
    assert PARAMS.read_text() == "dit:\n  steps: 7\n"
    assert load_settings(Path("settings/other.yaml")).dit.patch_size > 0
    assert yaml.safe_load(Path("settings/other.yaml").read_text())["images"]["source"] == "folder"


def test_a_refusal_leaves_settings_as_they_are() -> None:
    PARAMS.write_text("dit:\n  steps: 7\n")
    Path("mine").mkdir()
    for subject, named, arguments in (
        ("imagenet256xl", "'imagenet256-xl'", ("use", "imagenet256xl")),
        ("redi_sfd", "'redi-sfd'", ("show", "redi_sfd")),
        ("--images", "nowhere", ("use", "redi", "--images", "nowhere")),
    ):
        require_refusal(refusal_of("preset", *arguments), subject, named)
    assert PARAMS.read_text() == "dit:\n  steps: 7\n"

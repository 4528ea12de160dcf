"""docs/sampling.md is true: its commands and its example run, and its picture can be drawn."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from command_line import done
from PIL import Image
from tiny_project import CLASSES, SIDE
from trained_pipeline import project

from sfd_cli.config import EDITS, Settings
from sfd_cli.files import read_json
from sfd_cli.pipeline.semantic_first import SemanticFirstPipeline

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "sampling.md").read_text()
HERE = {"flags": "circles", "objects": "squares", "animals-nature": "circles", "food-drink": "triangles"}
"""Classes of the demo -> of the project in miniature."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = project(tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    settings = made.model_dump(
        mode="json", include={"paths", "images", "encoder", "texture_vae", "semvae", "runtime", "sample"}
    )
    settings["sample"] = {"steps": 4}
    Path("params.yaml").write_text(yaml.safe_dump(settings))
    picture().save("picture.png")
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[: SIDE // 2] = 255
    Image.fromarray(mask).save("mask.png")
    return tmp_path


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))


def here(text: str) -> str:
    for theirs, ours in HERE.items():
        text = text.replace(theirs, ours)
    return text


def test_the_commands_run(folder: Path) -> None:
    (block,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    commands = here(block).splitlines()
    for command in commands:
        program, *words = shlex.split(command)
        assert program == "sfd"
        done(*words)
        samples, grid = words[words.index("--samples") + 1], words[words.index("--grid") + 1]
        assert len(list(Path(samples).glob("0*.png"))) == 8
        assert Path(grid).exists()
    labels = {name: read_json(Path("data") / name / "labels.json") for name in ("two", "null", "strip", "seeds")}
    assert labels == {"two": [0, 2] * 4, "null": [3] * 8, "strip": [0] * 4 + [1] * 4, "seeds": [0] * 8}
    used = {word.removeprefix("--").replace("-", "_") for command in commands for word in command.split()}
    assert set(EDITS) <= used


def test_the_example_runs(folder: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(here(example), names)
    counts = {name: len(names[name]) for name in ("named", "seeds", "strip", "redrawn", "near", "inpainted")}
    assert counts == {"named": 2, "seeds": 8, "strip": 8, "redrawn": 4, "near": 1, "inpainted": 4}


def test_the_table_has_every_flag() -> None:
    named = dict(re.findall(r"\| `--([\w-]+)`, `(\w+)` \|", PAGE))
    assert named == {key.replace("_", "-"): key for key in ("classes", *EDITS)}
    assert set(EDITS) <= Settings().sample.model_fields.keys()


def test_its_picture_can_be_drawn(folder: Path) -> None:
    place = importlib.util.spec_from_file_location("sampling_picture", DOCS / "sampling.py")
    assert place is not None
    assert place.loader is not None
    script = importlib.util.module_from_spec(place)
    sys.modules["sampling_picture"] = script
    place.loader.exec_module(script)
    script.LABEL, script.FIRST, script.LAST = CLASSES
    pipeline = SemanticFirstPipeline.from_settings("params.yaml", encoder=True)
    pipeline.set_progress_bar_config(disable=True)
    rows = script.rows_of(pipeline, picture())
    assert all(len(row.pictures) == script.COLUMNS for row in rows)
    titles = {row.title.partition(":")[0] for row in rows}
    assert titles == {"to_seed", "to_class", "null", "keep", "start_time", "mask", "mask, keep"}
    script.draw(folder / "drawn.png", rows)
    with Image.open(folder / "drawn.png") as drawn:
        assert min(drawn.size) > 500

"""docs/python.md is true: its examples run as they stand there, one after another."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers.utils import dynamic_modules_utils

from sfd_cli.pipeline.semantic_first import SemanticFirstPipeline

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text()


def test_the_examples_run(pipeline: SemanticFirstPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.chdir(tmp_path)
    pipeline.save_pretrained("models/pipeline", samples=0)
    names: dict[str, Any] = {}
    for example in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(example, names)
    (first, second), (again, _), (alone,) = (
        [np.asarray(image, int) for image in names[name]] for name in ("same", "as_it_comes", "second_alone")
    )
    assert np.abs(second - alone).max() <= 1
    assert np.abs(first - again).max() > 1
    assert len(names["way"]) == 4
    assert names["way"][0].shape == (2, 3, 16, 16)
    assert names["half"].dit.final_linear.weight.dtype.itemsize == 2
    saved = {path.name for path in Path("models/mine").iterdir()}
    named = set(re.findall(r"`([\w.]+)/?`", PAGE.split("| | |\n")[1].split("\n\n")[0]))
    assert saved - named == set(), "the table has every file and folder"

"""The notebooks of examples/ run from the first cell to the last, and are kept without outputs.

`tests/test_dvc_pipeline.py` runs the same notebook on a project that is there already.
"""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from notebooks import EXAMPLES, FIRST_HOUR, executed, require_first_hour, said

RANDOM = {"name": "dinov2_vits14", "weights": "random", "image_size": 56}
TRANSFORMER = {"width": 32, "depth": 2, "heads": 2, "steps": 8, "batch_size": 8, "compile": False, "sample_every": 0}
TINY = {
    "images": {"limit": 48},
    "encoder": RANDOM,
    "semvae": {"width": 32, "depth": 1, "heads": 2, "steps": 6, "batch_size": 8},
    "texture_vae": {"decoder_channels": [8, 8], "steps": 4, "batch_size": 8},
    "dit": TRANSFORMER | {"repa_width": 32},
    "guide": TRANSFORMER,
    "sample": {"num_images": 12, "batch_size": 6, "steps": 4},
    "fid": {"encoder": RANDOM},
    "report": {"grid_images": 9, "trajectory_images": 2},
}
"""The demo in seconds."""


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_is_whole_and_has_no_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all((cell.outputs, cell.execution_count) == ([], None) for cell in code)
    assert [cell.id for cell in code if cell.metadata.get("tags") == ["parameters"]] == ["parameters"]


@pytest.mark.slow
def test_the_first_hour_begins_with_nothing(tmp_path: Path) -> None:
    cells = executed(FIRST_HOUR, tmp_path, parameters=f"folder = 'tiny'\nchanges = {TINY!r}")
    assert "Running stage 'report'" in said(cells["pipeline"])
    require_first_hour(cells, tmp_path / "tiny")

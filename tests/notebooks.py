"""Notebooks of examples/ run in a kernel of their own, with some cells replaced, and what their cells then show."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import nbformat
import numpy as np
from nbclient import NotebookClient
from PIL import Image
from pipeline_project import environment

from sfd_cli.pipeline.semantic_first import SemanticFirstPipeline

EXAMPLES = Path(__file__).parents[1] / "examples"
FIRST_HOUR = EXAMPLES / "first-hour.ipynb"

Cells = dict[str, nbformat.NotebookNode]


def executed(path: Path, folder: Path, **replaced: str) -> Cells:
    """The cells by their ids after a run in `folder`; `replaced` has other source for some of them."""
    notebook = nbformat.read(path, as_version=4)
    cells = {cell.id: cell for cell in notebook.cells}
    for name, source in replaced.items():
        cells[name].source = source
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}})
    # Under pytest a kernel does not catch what commands print.
    client.execute(env={name: value for name, value in environment().items() if name != "PYTEST_CURRENT_TEST"})
    return cells


def said(cell: nbformat.NotebookNode) -> str:
    """What a cell printed."""
    return "".join(output.get("text", "") for output in cell.get("outputs", []))


def pictures(cell: nbformat.NotebookNode) -> list[np.ndarray]:
    """What a cell showed."""
    shown = [output.data["image/png"] for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in shown]


def require_first_hour(cells: Cells, project: Path) -> None:
    """Check what the notebook has shown and left in its project."""
    assert "fd_dinov2" in said(cells["scores"])
    assert "the same latents: True" in said(cells["save"])
    shown = {name: pictures(cell) for name, cell in cells.items()}
    drawn = {"samples", "row", "way", "semantics", "offsets", "scales"}
    assert {name for name, found in shown.items() if found} == drawn
    assert shown["row"][0].shape == (96, 8 * 96, 3)
    assert shown["offsets"][0].shape == (96, 3 * 96, 3)
    for strip in ("way", "semantics"):
        assert shown[strip][0].shape == (96, 4 * 96, 3), "a picture for each of the four steps"
    saved = SemanticFirstPipeline.from_pretrained(project / "models" / "pipeline", device="cpu")
    assert len(saved.class_names) == 9
    assert "| `fd_dinov2_vits14_" in (project / "models" / "pipeline" / "README.md").read_text()

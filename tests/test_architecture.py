"""The picture of the architecture shows the code as it is."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def architecture() -> ModuleType:
    spec = importlib.util.spec_from_file_location("architecture", DOCS / "architecture.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_is_of_todays_stages_layers_and_imports(architecture: ModuleType) -> None:
    committed = json.loads((DOCS / "architecture.json").read_text())
    assert committed == architecture.graph(), (
        "docs/architecture.json and .png show other stages, layers or imports than the code has (after a merge, too):"
        " run `python docs/architecture.py` and commit both"
    )


def test_every_room_has_a_layer(architecture: ModuleType) -> None:
    rooms = {room for layer in architecture.layers() for room in layer}
    assert architecture.imports().keys() == rooms


def test_names_for_type_checkers_are_no_imports_and_names_in_functions_are(architecture: ModuleType) -> None:
    code = """
from sfd_cli import files
if TYPE_CHECKING:
    from sfd_cli.cli import app
def load():
    import sfd_cli.weights.hub
    from sfd_cli import __version__
"""
    found = set(architecture._imported(architecture.ast.parse(code)))
    assert found == {"sfd_cli.files", "sfd_cli.weights.hub"}


def test_it_is_drawn(architecture: ModuleType, tmp_path: Path) -> None:
    architecture.draw(architecture.graph(), tmp_path / "architecture.png")
    assert (tmp_path / "architecture.png").stat().st_size > 50_000

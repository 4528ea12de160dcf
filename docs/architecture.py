"""The picture of docs/architecture.md: the stages as dvc.yaml chains them, and the layers as the modules import them.

`python docs/architecture.py` writes architecture.json, which a test compares with the code, and draws architecture.png.
"""

from __future__ import annotations

import ast
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).parent
PACKAGE = DOCS.parent / "sfd_cli"
INK, PAPER = "#1d2733", "#f3efe6"
COLOURS = {"data": "#cfe3d4", "models": "#f1d9b5", "results": "#cfdcec"}


def graph() -> dict[str, Any]:
    """What the picture shows: stages with what they read and write, layers from the top, and imports between rooms."""
    return {"stages": stages(), "layers": layers(), "imports": imports()}


def stages() -> dict[str, dict[str, list[str]]]:
    """Per stage of dvc.yaml the artifacts it reads and writes."""
    described = yaml.safe_load((DOCS.parent / "dvc.yaml").read_text())["stages"]
    return {
        name: {
            "reads": list(stage.get("deps", [])),
            "writes": [next(iter(out)) for key in ("outs", "metrics") for out in stage.get(key, [])],
        }
        for name, stage in described.items()
    }


def layers() -> list[list[str]]:
    """Rooms from the top: each imports only from those below it."""
    contracts = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = [contract for contract in contracts if contract["type"] == "layers" and "containers" not in contract]
    return [[part.strip().removeprefix("sfd_cli.") for part in layer.split("|")] for layer in contract["layers"]]


def imports() -> dict[str, list[str]]:
    """Per room the rooms that its modules import, wherever in the module the import stands."""
    found: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if not room.startswith("__"):
            imported = {name.split(".")[1] for name in _imported(ast.parse(path.read_text())) if "." in name}
            found.setdefault(room, set()).update(imported - {room})
    return {room: sorted(others) for room, others in sorted(found.items())}


def _imported(tree: ast.AST) -> Iterator[str]:
    """Modules of the package that are imported when the code runs; names for type checkers only are not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "sfd_cli":
            names = [alias.name for alias in node.names]
            yield from (
                [str(node.module)]
                if node.module != "sfd_cli"
                else [
                    f"sfd_cli.{name}"
                    for name in names
                    if (PACKAGE / name).exists() or (PACKAGE / f"{name}.py").exists()
                ]
            )
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("sfd_cli."))
        yield from _imported(node)


def _depths(chain: dict[str, dict[str, list[str]]]) -> dict[str, int]:
    """Column of each stage: one more than the furthest of those whose artifacts it reads."""
    depths: dict[str, int] = {}
    for name, stage in chain.items():
        before = [depths[other] for other in depths if set(chain[other]["writes"]) & set(stage["reads"])]
        depths[name] = max(before, default=-1) + 1
    return depths


def draw(shown: dict[str, Any], path: Path) -> None:
    """The stages from left to right above, the layers from top to bottom below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(
        2, 1, figsize=(14, 12), height_ratios=[3, 8], facecolor=PAPER, layout="constrained"
    )
    _draw_stages(above, shown["stages"])
    _draw_layers(below, shown["layers"], shown["imports"])
    figure.savefig(path, dpi=110, facecolor=PAPER)
    pyplot.close(figure)


def _draw_stages(axes: Any, chain: dict[str, dict[str, list[str]]]) -> None:
    depths = _depths(chain)
    columns = {depth: [name for name in chain if depths[name] == depth] for depth in sorted(set(depths.values()))}
    places = {
        name: (depth, (len(names) - 1) / 2 - row) for depth, names in columns.items() for row, name in enumerate(names)
    }
    for name, stage in chain.items():
        for other in chain:
            if set(chain[other]["writes"]) & set(stage["reads"]):
                far = abs(places[other][0] - places[name][0]) > 1
                _arrow(axes, places[other], places[name], 0.15 if far else 0.0, 0.25 if far else 0.8)
        # Logs and scores go with the model; they are shown where they are all that a stage leaves.
        shown = [out for out in stage["writes"] if not out.startswith("metrics/")] or stage["writes"]
        _box(axes, places[name], "\n".join([name, *shown]), COLOURS.get(shown[0].split("/")[0], COLOURS["results"]))
    axes.set(xlim=(-0.5, max(columns) + 0.5), ylim=(-1.15, 0.85))
    axes.set_title("Stages: what `dvc repro` runs, and the artifacts they leave")
    _bare(axes)


def _draw_layers(axes: Any, rows: list[list[str]], imported: dict[str, list[str]]) -> None:
    """A table of rooms: a dot where the row imports the column; all lie right of the diagonal."""
    rooms = [room for row in rows for room in row]
    line = 0
    for index, row in enumerate(rows):
        if index % 2 == 0:
            axes.axhspan(-line + 0.5, -line - len(row) + 0.5, color="white", alpha=0.7, zorder=0, lw=0)
        line += len(row)
    for line, room in enumerate(rooms):
        axes.text(-1.0, -line, room, ha="right", va="center", fontsize=11, color=INK, weight="bold")
        axes.text(len(rooms) + 0.2, -line, _says(room), ha="left", va="center", fontsize=9.5, color=INK)
        axes.text(line, 0.9, room, ha="center", va="bottom", rotation=90, fontsize=9.5, color=INK)
        axes.plot([line, line], [0.5, -len(rooms) + 0.5], color=INK, lw=0.4, alpha=0.15, zorder=1)
        axes.plot(line, -line, marker="s", ms=9, color=INK, alpha=0.18)
        for other in set(imported.get(room, [])) & set(rooms):
            column = rooms.index(other)
            axes.plot(column, -line, marker="o", ms=8, color=INK if column > line else "#c0392b", zorder=3)
    axes.set(xlim=(-5, 2.35 * len(rooms)), ylim=(-len(rooms) + 0.4, 7))
    axes.set_title("Layers, from the top: which room (row) imports which (column); white and grey bands are layers")
    _bare(axes)


def _says(room: str) -> str:
    """First line of what the room says about itself."""
    path = PACKAGE / f"{room}.py"
    text = (path if path.exists() else PACKAGE / room / "__init__.py").read_text()
    return (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]


def _box(axes: Any, place: tuple[float, float], text: str, colour: str) -> None:
    style = {"boxstyle": "round,pad=0.45", "facecolor": colour, "edgecolor": INK, "linewidth": 0.9}
    axes.text(*place, text, ha="center", va="center", fontsize=9.5, color=INK, bbox=style, zorder=3)


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], bend: float, alpha: float) -> None:
    shape = {"arrowstyle": "-|>", "connectionstyle": f"arc3,rad={bend}", "color": INK, "alpha": alpha, "lw": 1.1}
    axes.annotate("", end, start, arrowprops=shape | {"shrinkA": 20, "shrinkB": 26}, zorder=1)


def _bare(axes: Any) -> None:
    axes.set_facecolor(PAPER)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.title.set(fontsize=12, color=INK)
    for side in axes.spines.values():
        side.set_visible(False)


def main() -> None:
    """Write the data and the picture."""
    shown = graph()
    (DOCS / "architecture.json").write_text(json.dumps(shown, indent=1) + "\n")
    draw(shown, DOCS / "architecture.png")


if __name__ == "__main__":
    main()

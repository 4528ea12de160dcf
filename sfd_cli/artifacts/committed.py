"""Results of this folder beside those that its git repository has: the same to the byte, or another run's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sfd_cli.errors import UserError
from sfd_cli.files import read_json
from sfd_cli.git import git

LOCK = Path("dvc.lock")
SEEDS = "seeds.json"
"""Scores of the committed settings by training seed, among the metrics: `{score: [seed 0's, seed 1's ...]}`."""


def compare_to_committed(metrics: Path, scores: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """What to say of this run's scores beside the committed ones; nothing where none are committed.

    Args:
        metrics: folder of the scores, `fid.json` among them, and of the numbers that lead to them.
        scores: contents of this run's `fid.json`.
        keys: of the distances in it that are put side by side.
    """
    committed = _committed(metrics / "fid.json")
    if committed is None:
        return {}
    changed = git(Path(), "status", "--porcelain", "--untracked-files=no", "--", str(LOCK), str(metrics))
    if not (changed or "").strip():
        return {"committed results": f"this run's: {LOCK} and {metrics}/ are as committed, to the byte"}
    here, there = (_machine(found) for found in (scores, committed))
    said = {"on": here} if here == there else {"on": here, "committed on": there}
    return {
        "your own run": said
        | _beside(metrics, scores, committed, keys)
        | {"compare": "dvc metrics diff", "put back": f"git restore {LOCK} {metrics}"}
    }


def _beside(metrics: Path, scores: dict[str, Any], committed: dict[str, Any], keys: list[str]) -> dict[str, str]:
    """Each distance of this run beside the committed one, with what is known of its spread."""
    seeds = read_json(metrics / SEEDS) if (metrics / SEEDS).exists() else {}
    if not isinstance(seeds, dict):
        raise UserError(metrics / SEEDS, "has no lists of scores by name", "correct it")
    lines = {}
    for key in keys:
        ours, theirs = scores.get(key), committed.get(key)
        if ours is None or theirs is None:
            continue
        lines[key] = f"{ours:.4g}, committed {theirs:.4g}"
        if error := committed.get(f"{key}_se"):
            lines[key] += f" ± {error:.2g} (standard error of the draw of samples)"
        if seeds.get(key):
            lines[key] += f"; by training seed {', '.join(f'{one:.4g}' for one in seeds[key])}"
    return lines


def _committed(path: Path) -> dict[str, Any] | None:
    """The JSON object that the last commit has at this path."""
    try:
        found = json.loads(git(Path(), "show", f"HEAD:./{path.as_posix()}") or "null")
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def _machine(scores: dict[str, Any]) -> str:
    found = scores.get("machine", {})
    if not found:
        return "a machine that was not recorded"
    return f"{found.get('processor')}, {found.get('threads')} threads, PyTorch {found.get('torch')}"

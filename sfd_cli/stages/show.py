"""`sfd show`: where the pictures and the scores are, the scores, how long it took, and what git has instead."""

from __future__ import annotations

from typing import Any

from sfd_cli.artifacts.committed import compare_to_committed
from sfd_cli.artifacts.timings import seconds_of_stages
from sfd_cli.config import Settings
from sfd_cli.errors import UserError
from sfd_cli.evaluation.scores import distances_of
from sfd_cli.files import read_as


def run(settings: Settings) -> dict[str, Any]:
    """The places of the sample grid, the report and the scores, the Fréchet distances, and every stage's seconds.

    Where scores are committed it ends with whether these results are the committed ones, to the byte, or else with both
    runs' scores and machines.

    Raises:
        UserError: nothing was scored yet.
    """
    scores = settings.paths.metrics / "fid.json"
    if not scores.exists():
        raise UserError(scores, "does not exist", "run `dvc repro`, or `sfd fid` after `sfd sample`")
    found = read_as(dict[str, Any], scores)
    keys = distances_of(found)
    return {
        "sample grid": str(settings.paths.reports / "samples.png"),
        "report": str(settings.paths.reports / "index.html"),
        "scores": str(scores),
        **{key: _distance(found, key) for key in keys},
        "seconds": seconds_of_stages(settings.paths.metrics / "timings"),
        **compare_to_committed(settings.paths.metrics, found, keys),
    }


def _distance(found: dict[str, Any], key: str) -> dict[str, Any] | str:
    """A Fréchet distance between its ceiling and its floor, or why there is none."""
    if found.get(key) is None:
        return f"none: {found.get(f'{key}_reason', 'not computed')}"
    return {
        "samples": found[key],
        "untrained model (ceiling)": found.get(f"{key}_untrained"),
        "real ones through the autoencoder": found.get(f"{key}_reconstructed"),
        "two halves of the data (floor)": found.get(f"{key}_halves"),
    }

"""`sfd show`: where the pictures and the scores are, the scores, how long it took, and what git has instead."""

from __future__ import annotations

from typing import Any

from sfd_cli.artifacts.committed import compare_to_committed
from sfd_cli.artifacts.timings import seconds_of_stages
from sfd_cli.config import Settings
from sfd_cli.errors import UserError
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
    return {
        "sample grid": str(settings.paths.reports / "samples.png"),
        "report": str(settings.paths.reports / "index.html"),
        "scores": str(scores),
        "fid": found["fid"] if found.get("fid") is not None else f"none: {found.get('fid_reason', 'not computed')}",
        "fd_dinov2": {
            "samples": found.get("fd_dinov2"),
            "untrained model (ceiling)": found.get("fd_dinov2_untrained"),
            "two halves of the data (floor)": found.get("fd_dinov2_halves"),
        },
        "seconds": seconds_of_stages(settings.paths.metrics / "timings"),
        **compare_to_committed(settings.paths.metrics, found),
    }

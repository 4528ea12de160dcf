"""What every stage took, as `metrics/timings/` has it: apart from results, for equal runs take different times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sfd_cli.files import read_json
from sfd_cli.tables import STAGES


def seconds_of_stages(folder: Path) -> dict[str, str]:
    """Seconds of each stage that has recorded its time, in the order of the pipeline, and of all; with its runs."""
    segments = {path.stem: read_json(path) for path in sorted(Path(folder).glob("*.json"))}
    order = [stage for stage in STAGES if stage in segments] + [name for name in segments if name not in STAGES]
    seconds = {stage: sum(float(part["seconds"]) for part in segments[stage]) for stage in order}
    shown = {stage: f"{seconds[stage]:,.1f}{_runs(segments[stage])}" for stage in order}
    return shown | ({"all": f"{sum(seconds.values()):,.1f}"} if shown else {})


def _runs(segments: list[dict[str, Any]]) -> str:
    # A killed run records no time: if the first segment was resumed, an unknown one came before it.
    if segments[0]["resumed"]:
        return ", resumed: an interrupted run before it is not counted"
    return "" if len(segments) == 1 else f", in {len(segments)} runs"

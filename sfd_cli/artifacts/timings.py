"""What every stage took, as `metrics/timings/` has it: apart from results, for equal runs take different times."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from sfd_cli.files import read_as
from sfd_cli.tables import STAGES


class Segment(BaseModel):
    """How long one run of a stage took, and whether it went on with what another one had left."""

    seconds: float
    resumed: bool


def speed_folder(folder: Path) -> Path:
    """Where the speed of the training that logs to `folder` is logged.

    Among the timings, which git leaves out: equal runs leave equal files where results are.
    """
    return folder.parent / "timings" / folder.name


def seconds_of_stages(folder: Path) -> dict[str, str]:
    """Seconds of each stage that has recorded its time, in the order of the pipeline, and of all; with its runs."""
    files = sorted(Path(folder).glob("*.json"))
    segments = {path.stem: found for path in files if (found := read_as(list[Segment], path))}
    order = [stage for stage in STAGES if stage in segments] + [name for name in segments if name not in STAGES]
    seconds = {stage: sum(part.seconds for part in segments[stage]) for stage in order}
    shown = {stage: f"{seconds[stage]:,.1f}{_runs(segments[stage])}" for stage in order}
    return shown | ({"all": f"{sum(seconds.values()):,.1f}"} if shown else {})


def _runs(segments: list[Segment]) -> str:
    # A killed run records no time: if the first segment was resumed, an unknown one came before it.
    if segments[0].resumed:
        return ", resumed: an interrupted run before it is not counted"
    return "" if len(segments) == 1 else f", in {len(segments)} runs"

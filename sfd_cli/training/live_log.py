"""Training curves through dvclive: one TSV per quantity and the latest values as JSON, exact after a resume."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path

from sfd_cli.artifacts.timings import speed_folder
from sfd_cli.errors import UserError
from sfd_cli.files import atomic_path, read_as, write_json


class LiveLog:
    """Logs to `folder`: `plots/metrics/<name>.tsv` and `metrics.json`.

    Args:
        folder: of this log.
        step: steps done so far. What a killed run had logged beyond it is dropped, because those steps are about
            to be done again; 0 starts an empty log.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._live = _open(Path(folder), resume=step > 0)
        self._before = _rewind(Path(folder), step) if step > 0 else {}
        self._own: dict[str, float] = {}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add one row per quantity, as of `step` steps done."""
        self._live.step = step
        self._live.summary = dict(self._own)
        for name, value in values.items():
            self._live.log_metric(name, value)
        self._own = self._live.summary | {"step": step}
        # In the order in which they are logged, as in a run that nobody has interrupted.
        self._live.summary = self._own | {name: old for name, old in self._before.items() if name not in self._own}
        self._live.make_summary()


def latest_values(folder: Path) -> dict[str, float]:
    """The latest value of every quantity that was logged; none where nothing was, or its file is damaged."""
    found: dict[str, float] = {}
    for log in (folder, speed_folder(folder)):
        with contextlib.suppress(UserError):
            found |= read_as(dict[str, float], log / "metrics.json")
    return found


def clear_log(folder: Path) -> None:
    """Remove the curves of an earlier training and its pictures; a file stays, because git keeps no empty folder."""
    for name in ("plots", "samples"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "surface.png").unlink(missing_ok=True)
    shutil.rmtree(speed_folder(folder), ignore_errors=True)
    write_json(folder / "metrics.json", {})


def _open(folder: Path, resume: bool):  # type: ignore[no-untyped-def]
    from dvclive import Live

    class Quiet(Live):
        """dvclive without its look at the repository, which would make one out of a folder that is none."""

        def _init_dvc(self) -> None:
            pass

    # dvclive writes this file in place, so a killed run may have left half of it; the TSVs hold the same values.
    (folder / "metrics.json").unlink(missing_ok=True)
    return Quiet(str(folder), resume=resume, report=None, save_dvc_exp=False, dvcyaml=None)


def _rewind(folder: Path, step: int) -> dict[str, float]:
    """Drop the rows past `step` and rows cut short by a kill; the latest values that are left."""
    latest: dict[str, float] = {}
    for path in sorted((folder / "plots" / "metrics").glob("*.tsv")):
        header, *lines = path.read_text().splitlines(keepends=True) or [""]
        kept = [line for line in lines if line.endswith("\n") and _step(line) <= step]
        if not kept:
            path.unlink()
            continue
        with atomic_path(path) as temporary:
            temporary.write_text("".join([header, *kept]))
        latest[path.stem] = float(kept[-1].split("\t")[1])
        latest["step"] = max(latest.get("step", 0), _step(kept[-1]))
    if latest:
        write_json(folder / "metrics.json", latest)
    return latest


def _step(line: str) -> int:
    return int(line.split("\t")[0])

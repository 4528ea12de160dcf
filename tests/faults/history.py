"""A tiny project stage by stage: what is there before each, and what an undisturbed run leaves."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from command_line import files_below
from finished_project import SECTIONS, settings_file
from forks import Ended, Work, command, forked
from moments import count, watch

# What depends on the clock, or on who looked when.
CLOCK = re.compile(r"\.git/|\.lock$|\.seen\.json$|metrics/timings/|\.verified\.json$")
# Half-written files outside of artifacts' folders, which nobody sweeps: hidden, and no reader sees them.
SCRAPS = re.compile(r"(metrics|reports|cache)/(.*/)?\.[^/]+\.tmp$")
# What is never made twice: shards and pictures once they have their names, and checkpoints.
PARTS = ("data/*/shard-*.h5", "data/samples/*.png", "models/.checkpoints/*/*/step-*/model.safetensors")
CHECKPOINT = re.compile(r"(models/\.checkpoints/.*)/step-(\d+)/")


@dataclass(frozen=True)
class Step:
    """A stage of the undisturbed run.

    Attributes:
        stage: its name.
        before: the project that it finds.
        after: SHA-256 of every file that it leaves, by path.
        seconds: that it took, in a fork.
        moments: at which it changed a file.
        made: files that it made, by path, and their bytes.
    """

    stage: str
    before: Path
    after: dict[str, str]
    seconds: float
    moments: int
    made: dict[str, int]

    @contextmanager
    def project(self, folder: Path) -> Iterator[Path]:
        """The project before the stage, to work in, in `folder`; removed at the end."""
        copy = folder / "project"
        shutil.copytree(self.before, copy, symlinks=True)
        try:
            yield copy
        finally:
            shutil.rmtree(copy)

    def run(self, project: Path, prepare: Work = lambda: None, kill_after: float | None = None) -> Ended:
        """Run the stage in a fork."""
        return forked(command(project, self.stage, prepare=prepare), kill_after)

    def begun(self, project: Path) -> dict[str, int]:
        """Parts that a run of the stage has left so far, with their times of change."""
        known = parts(self.before)
        return {name: changed for name, changed in parts(project).items() if name not in known}

    def differences(self, project: Path) -> list[str]:
        """Files that are not as the undisturbed run left them."""
        found = outputs(project)
        return sorted(name for name in found.keys() | self.after.keys() if found.get(name) != self.after.get(name))


def live_through(folder: Path) -> list[Step]:
    """Run all stages in `folder`/project, and keep a copy of it before each and of its end, `folder`/end."""
    project = folder / "project"
    project.mkdir()
    settings_file(project / "params.yaml", {"runtime.device": "cpu"})
    steps = []
    for stage in SECTIONS:
        before, tally = folder / f"before-{stage}", folder / f"moments-{stage}"
        shutil.copytree(project, before)
        known = outputs(project)
        ended = forked(command(project, stage, prepare=partial(watch, project, tally)))
        assert ended.code == 0, f"{stage}: {ended.said}"
        after = outputs(project)
        made = {name: (project / name).stat().st_size for name, digest in after.items() if digest and name not in known}
        steps.append(Step(stage, before, after, ended.seconds, count(tally), made))
    shutil.move(project, folder / "end")
    return steps


def outputs(project: Path) -> dict[str, str]:
    """SHA-256 of every file that equal runs leave equal, by path."""
    return {
        name: digest
        for name, digest in files_below(project).items()
        if digest and not (CLOCK.search(name) or SCRAPS.match(name))
    }


def parts(project: Path) -> dict[str, int]:
    """Times of change of the shards, samples and checkpoints that are there, by path."""
    found = itertools.chain.from_iterable(project.glob(pattern) for pattern in PARTS)
    return {str(path.relative_to(project)): path.stat().st_mtime_ns for path in found}


def lost(project: Path, before: dict[str, int], said: str) -> list[str]:
    """What a run made again of the parts that were there before it, or how far it went back; `said` is its output."""
    now = parts(project)
    again = [name for name, changed in before.items() if name in now and now[name] != changed]
    steps = [int(found.group(2)) for name in before if (found := CHECKPOINT.match(name))]
    begun = re.search(r"steps ([\d,]+) to", said)
    if steps and begun and int(begun.group(1).replace(",", "")) - 1 < max(steps):
        again.append(f"training began at step {begun.group(1)}, and there was a checkpoint of {max(steps)}")
    return again

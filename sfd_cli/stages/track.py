"""`sfd track`: what `metrics/` has of finished runs, sent to a tracker."""

from __future__ import annotations

from typing import Any

from sfd_cli.config import Settings
from sfd_cli.errors import SettingError, SfdError, StageFailure, UserError
from sfd_cli.trackers.identity import held, run_of
from sfd_cli.trackers.logged import READ, Logged
from sfd_cli.trackers.sending import send
from sfd_cli.trackers.tracker import Tracker, require_tracker


def run(settings: Settings, to: list[str] | None = None) -> dict[str, Any]:
    """Send the curves of every run in `metrics/`, with its settings, grids and scores.

    What a tracker has of a run already is not sent twice.

    Args:
        settings: the sections `metrics` and `paths` are read.
        to: names of trackers; None: those of `metrics.trackers`.

    Returns:
        What was sent, by tracker and run.

    Raises:
        UserError: no tracker is named, one cannot be used, there are no curves, or one is damaged.
        StageFailure: a tracker could not be written to.
    """
    names = settings.metrics.trackers if to is None else to
    if not names:
        raise UserError("--to", "no tracker is named", "give one, e.g. --to tensorboard, or set metrics.trackers")
    trackers = {name: _tracker(name, "--to" if to else "metrics.trackers") for name in names}
    runs = [logged for logged in (Logged(settings, key) for key in READ) if logged.tables]
    if not runs:
        raise UserError(settings.paths.metrics, "has no curves", "train something first, e.g. `sfd train`")
    return {
        name: {logged.key: _sent(name, tracker, logged) for logged in runs} for name, tracker in trackers.items()
    } | {"folder": str(run_of(runs[0]).folder)}


def _tracker(name: str, subject: str) -> Tracker:
    try:
        return require_tracker(name, subject)
    except SettingError as error:
        raise UserError(subject, error.problem, error.remedy) from None


def _sent(name: str, tracker: Tracker, logged: Logged) -> str:
    """How much of a run was sent."""
    scores = logged.scores
    with held(logged) as is_ours:
        if not is_ours:
            raise UserError(logged.log, "is being sent by the training that writes it", "wait for its end")
        try:
            entries = send(tracker, run_of(logged), logged, scores)
        except SfdError:
            raise
        except Exception as error:  # of a package that is none of ours
            problem = f"{name} cannot be written to ({type(error).__name__}: {' '.join(str(error).split())})"
            raise StageFailure(logged.log, problem, "run the same command again when it can") from error
    counts = {"curves": len(entries.names), "grids": len(logged.grids), "scores": len(scores)}
    return ", ".join([*(f"{what} {count}" for what, count in counts.items() if count), f"to step {entries.last:,}"])

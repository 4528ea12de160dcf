"""MLflow: a run that goes on is sent what its server lacks."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from sfd_cli.errors import UserError
from sfd_cli.trackers.tracker import DEFAULT_PROJECT, Entry, Run, Tracker

ID = "sfd_id"
"""The tag by which a run is found again, for MLflow draws its own ids."""
METRICS, PARAMS, LONGEST = 1000, 100, 500
"""What a server takes at once, and of one parameter's text."""


class _MlflowRun:
    """One run of MLflow.

    MLflow keeps every row that it is sent and takes none back. A resumed training takes the steps after its checkpoint
    again, and to the same values: those that the server has are left out, and those that it lacks are sent.
    """

    def __init__(self, run: Run) -> None:
        from mlflow.tracking import MlflowClient

        # It would tell every attempt to reach a server.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        self._client = MlflowClient()
        project = run.project or os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_PROJECT
        experiment = self._client.get_experiment_by_name(project)
        place = experiment.experiment_id if experiment else self._client.create_experiment(project)
        found = self._client.search_runs([place], f"tags.{ID} = '{run.id}'", max_results=1)
        there = found[0] if found else self._client.create_run(place, tags={ID: run.id}, run_name=run.name)
        self._id: str = there.info.run_id
        self._client.update_run(self._id, status="RUNNING")
        self._latest = dict(there.data.metrics)
        self._held = {name: self._steps(name) for name in self._latest}
        self._pictures = {one.path for one in self._client.list_artifacts(self._id)} if found else set()
        self._describe(run.settings, there.data.params)

    def _steps(self, name: str) -> set[int]:
        return {metric.step for metric in self._client.get_metric_history(self._id, name)}

    def _describe(self, settings: Mapping[str, Any], there: Mapping[str, str]) -> None:
        """Settings as parameters, which never change once they are set, and whole as a file, which does."""
        from mlflow.entities import Param

        new = [Param(name, str(value)[:LONGEST]) for name, value in settings.items() if name not in there]
        for part in _parts(new, PARAMS):
            self._client.log_batch(self._id, params=part)
        self._client.log_dict(self._id, dict(settings), "settings.json")

    def log(self, entries: Sequence[Entry]) -> None:
        """Send the rows and pictures that the server lacks."""
        rows = [(name, value, entry.step) for entry in entries for name, value in entry.values.items()]
        self._send([(name, value, step) for name, value, step in rows if step not in self._held.get(name, ())])
        for entry in entries:
            for name, path in entry.pictures.items():
                folder = f"{name}-{entry.step:07d}"
                if folder not in self._pictures:
                    self._client.log_artifact(self._id, str(path), folder)
                    self._pictures.add(folder)

    def scores(self, step: int, values: Mapping[str, float]) -> None:
        """Send the scores that are not the last ones there."""
        rows = [(f"scores/{name}", value, step) for name, value in values.items()]
        self._send([row for row in rows if self._latest.get(row[0]) != row[1]])

    def _send(self, rows: Sequence[tuple[str, float, int]]) -> None:
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        for part in _parts([Metric(name, value, now, step) for name, value, step in rows], METRICS):
            self._client.log_batch(self._id, metrics=part)

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self._id)


T = TypeVar("T")


def _parts(rows: Sequence[T], size: int) -> list[Sequence[T]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _require_server() -> None:
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        problem = "'mlflow' is not told where its server is"
        raise UserError("metrics.trackers", problem, "set MLFLOW_TRACKING_URI, e.g. to http://localhost:5000")


MLFLOW = Tracker(_MlflowRun, "mlflow", _require_server)

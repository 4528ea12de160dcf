"""MLflow has every row once, in its own store of files; and a server that refuses costs a warning."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import files_below
from PIL import Image
from refusals import refusal
from runs import Curves, KilledError, kill_at, refusing, settings_of, tables, train

from sfd_cli.trackers import sending
from sfd_cli.trackers.mlflow import MLFLOW
from sfd_cli.trackers.tracker import Entry, Run, require_trackers

pytestmark = pytest.mark.slow  # seconds of imports


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlflow'}")
    monkeypatch.setattr(sending, "INTERVAL", 0.05)
    monkeypatch.setattr(sending, "PATIENCE", 120.0)


def history(name: str) -> tuple[Curves, dict[str, str], str]:
    """All rows, the parameters and the state of the only run of this name."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    (run,) = [one for one in client.search_runs([experiment.experiment_id]) if one.info.run_name == name]
    rows = {
        key: [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, key)]
        for key in run.data.metrics
    }
    return rows, run.data.params, run.info.status


def test_a_resumed_run_has_every_row_once(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        train(tmp_path, "mlflow", on_step=[kill_at(9)])
    train(tmp_path, "mlflow")
    found, _, status = history("test dit")
    assert {name: sorted(rows) for name, rows in found.items() if name != "images_per_second"} == {
        name: rows for name, rows in tables(tmp_path).items() if name != "images_per_second"
    }
    assert status == "FINISHED"


def test_settings_grids_and_scores_go_too_and_none_twice(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    Image.new("RGB", (2, 2)).save(tmp_path / "grid.png")
    run = Run("ab12", "dit", "mine", "tests", tmp_path, {"dit.width": 32, "dit.knots": [0.5] * 400})
    for score in (2.5, 2.5, 1.5):
        writer = MLFLOW.open(run)
        writer.log([Entry(3, {"loss": 0.5}, {"samples": tmp_path / "grid.png"})])
        writer.scores(7, {"fd": score})
        writer.close()
    found, params, _ = history("mine dit")
    assert found == {"loss": [(3, 0.5)], "scores/fd": [(7, 2.5), (7, 1.5)]}
    assert params["dit.width"] == "32"
    client = MlflowClient()
    (kept,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert {one.path for one in client.list_artifacts(kept.info.run_id)} == {"samples-0000003", "settings.json"}


def test_a_server_that_refuses_leaves_bytes_alone_and_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    train(tmp_path / "plain")
    with refusing() as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        train(tmp_path / "sent", "mlflow", on_step=[server.let_go_at_the_end])
    assert server.answered_before_the_end == 0, "and all steps were taken"
    assert files_below(tmp_path / "plain" / "checkpoints") == files_below(tmp_path / "sent" / "checkpoints")
    assert len([line for line in capsys.readouterr().err.splitlines() if "mlflow cannot" in line]) == 1


def test_without_an_address_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with refusal("metrics.trackers", "MLFLOW_TRACKING_URI"):
        require_trackers(settings_of(tmp_path, "mlflow"))

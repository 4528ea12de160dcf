"""`sfd track`, and the flag --trackers of the stages that have curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import done, files_below, refusal_of, sfd
from refusals import require_refusal
from training_project import project

from sfd_cli.files import write_json
from sfd_cli.tables import TRACKERS
from sfd_cli.trackers.tracker import Tracker

Curves = dict[str, list[tuple[int, float]]]


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    project(tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def event_files(key: str) -> Curves:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = Path("metrics/trackers/tensorboard").glob(f"{key}-*")
    read = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    read.Reload()
    return {name: [(one.step, one.value) for one in read.Scalars(name)] for name in read.Tags()["scalars"]}


def tables(key: str) -> Curves:
    found: Curves = {}
    for path in [*Path("metrics", key).rglob("*.tsv"), *Path("metrics/timings", key).rglob("*.tsv")]:
        rows = (line.split("\t") for line in path.read_text().splitlines()[1:])
        found[path.stem] = [(int(step), float(np.float32(value))) for step, value in rows]
    return found


def test_a_training_that_is_sent_leaves_the_files_of_one_that_is_not() -> None:
    done("train", "--dit", "models/plain", "--metrics", "plain")
    done("train", "--trackers", "tensorboard", "--holdout", 0.0)
    assert event_files("dit") == tables("dit")
    assert {"loss", "mse", "repa", "images_per_second"} <= tables("dit").keys()
    assert files_below(Path("models/plain")) == files_below(Path("models/dit"))
    assert files_below(Path("plain/dit")) == files_below(Path("metrics/dit"))


def test_finished_runs_are_sent_with_their_scores_and_as_often_as_one_likes() -> None:
    done("train")
    done("train-guide")
    write_json(Path("metrics/fid.json"), {"fd_dinov2": 9.5, "fid": None})
    for _ in range(2):
        said = done("track", "--to", "tensorboard").out
        assert "curves" in said
        assert "scores 1" in said
        assert event_files("dit") == tables("dit") | {"scores/fd_dinov2": [(6, 9.5)]}
        assert event_files("guide") == tables("guide")


@pytest.mark.parametrize(
    ("arguments", "subject", "named"),
    [
        (("train", "--trackers", "tensorbord"), "--trackers", "tensorboard"),
        (("track", "--to", "wandbb"), "--to", "wandb"),
        (("track",), "--to", "metrics.trackers"),
        (("track", "--to", "absent"), "--to", "no_such_package_anywhere"),
        (("train", "--trackers", "absent"), "metrics.trackers", "no_such_package_anywhere"),
    ],
)
def test_an_unknown_tracker_and_one_that_is_not_installed_are_refused_before_anything_is_written(
    arguments: tuple[str, ...], subject: str, named: str
) -> None:
    TRACKERS.add("absent", Tracker(lambda run: pytest.fail("opened"), package="no_such_package_anywhere"))
    try:
        require_refusal(refusal_of(*arguments), subject, named)
    finally:
        TRACKERS.remove("absent")


def test_nothing_to_send_is_told() -> None:
    require_refusal(refusal_of("track", "--to", "tensorboard"), "metrics")


def test_a_tracker_that_fails_is_a_sentence_and_code_1() -> None:
    def fail(run: object) -> object:
        raise ConnectionError("no route")

    done("train")
    TRACKERS.add("failing", Tracker(fail))  # type: ignore[arg-type]
    try:
        ran = sfd("track", "--to", "failing")
    finally:
        TRACKERS.remove("failing")
    assert ran.code == 1
    assert "ConnectionError: no route" in ran.err

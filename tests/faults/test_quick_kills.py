"""A few kills in the usual run: sampling and training of hand-made models, at every kind of moment."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from forks import Ended, forked, warm_up
from history import lost, outputs, parts
from moments import count, watch
from surroundings import no_file_longer_than
from tiny_project import tiny_settings, write_features, write_models

from sfd_cli.cli.terminal import friendly_errors
from sfd_cli.config import Settings
from sfd_cli.stages import sample, train_semvae

SEMVAE = {
    "channels": 3,
    "width": 16,
    "depth": 1,
    "heads": 2,
    "steps": 4,
    "batch_size": 4,
    "checkpoint_every": 2,
    "log_every": 1,
}
STAGES: dict[str, Callable[[Settings], object]] = {"sample": sample.run, "train-semvae": train_semvae.run}


@pytest.fixture(autouse=True, scope="module")
def _warm() -> None:
    warm_up()


def project(folder: Path) -> Settings:
    folder.mkdir()
    sampling = {"num_images": 6, "batch_size": 2, "steps": 2}
    settings = tiny_settings(folder, semvae=SEMVAE, sample=sampling)
    write_features(settings)
    write_models(settings)
    return settings


def run(stage: str, settings: Settings, prepare: Callable[[], object] = lambda: None) -> Ended:
    def work() -> None:
        prepare()
        friendly_errors(STAGES[stage])(settings)

    return forked(work)


def while_writing(limit: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_any_moment_a_stage_goes_on_to_the_same_bytes(stage: str, tmp_path: Path) -> None:
    whole, killed, tally = tmp_path / "whole", tmp_path / "killed", tmp_path / "tally"
    ended = run(stage, project(whole), partial(watch, whole, tally))
    assert ended.code == 0, ended.said
    moments, settings = count(tally), project(killed)
    kills = [partial(while_writing, 600), *(partial(watch, killed, tally, moments // part) for part in (3, 5))]
    for kill in kills:
        tally.unlink(missing_ok=True)
        assert run(stage, settings, kill).code < 0
    there = parts(killed)
    again = run(stage, settings)
    assert again.code == 0, again.said
    assert lost(killed, there, again.said) == []
    assert outputs(killed) == outputs(whole)


def test_without_room_a_stage_says_so_and_goes_on_when_there_is_some(tmp_path: Path) -> None:
    whole, full = project(tmp_path / "whole"), project(tmp_path / "full")
    assert run("train-semvae", whole).code == 0
    ended = run("train-semvae", full, partial(no_file_longer_than, 800))
    assert ended.code == 1
    assert "is full" in ended.said
    assert "Traceback" not in ended.said
    assert run("train-semvae", full).code == 0
    assert outputs(tmp_path / "full") == outputs(tmp_path / "whole")

"""Milestones: averaged weights of the steps on the way, whole however the run was cut, and models like any other."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from finished_project import flip
from model_loading import load_dit
from pydantic import ValidationError
from refusals import refusal
from training_project import contents, project, settings_with

from sfd_cli.artifacts.fingerprints import finished_model
from sfd_cli.artifacts.milestones import Milestones
from sfd_cli.artifacts.recipe import Record
from sfd_cli.artifacts.verification import verify
from sfd_cli.config import DiT, Settings
from sfd_cli.files import read_json
from sfd_cli.networks.lightning_dit import LightningDiT
from sfd_cli.stages import train, train_guide
from sfd_cli.stages.weights_export import export_anything
from sfd_cli.training.checkpoints import Checkpoints, TrainingState
from sfd_cli.weights.models import open_model

KEPT = Path("models/dit/milestones")


class KilledError(Exception):
    """A stand-in for a kill: nothing of the run comes after it."""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    project(tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def names() -> list[str]:
    return sorted(path.name for path in KEPT.iterdir())


def test_a_milestone_is_the_averaged_model_of_a_run_that_ended_there(root: Path) -> None:
    summary = train.run(settings_with(keep_every=2))
    assert summary["milestones"] == f"3 in {KEPT}"
    assert names() == ["0000002", "0000004", "0000006"]
    for step in (2, 4, 6):
        assert set(contents(Milestones(Path("models/dit")).path(step))) == {
            "config.json",
            "ema.safetensors",
            "checksums.json",
        }
    Path("models/dit").rename("whole")
    for step in (2, 4, 6):
        shutil.rmtree("models/.checkpoints", ignore_errors=True)
        train.run(settings_with(steps=step))
        for file in ("ema.safetensors", "config.json"):
            stopped = Path("models/dit", file).read_bytes()
            assert Path("whole/milestones", f"{step:07d}", file).read_bytes() == stopped
        milestone = open_model(f"whole/milestones/{step:07d}", LightningDiT)
        assert milestone.fingerprint == open_model("models/dit", LightningDiT).fingerprint
        shutil.rmtree("models/dit")


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch, **section: Any) -> None:
    """A run that is killed when it is about to write the checkpoint of a step."""
    original = Checkpoints.save

    def save(checkpoints: Checkpoints, state: TrainingState) -> None:
        if state.step == step:
            raise KilledError
        original(checkpoints, state)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        with pytest.raises(KilledError):
            train.run(settings_with(**section))


def test_a_run_that_is_killed_leaves_the_milestones_of_one_in_one_go(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = {"keep_every": 2, "checkpoint_every": 3}
    train.run(settings_with(**section))
    whole = contents(Path("models/dit"))
    assert sum(name.startswith("milestones/") for name in whole) == 9
    Path("models/dit").rename("whole")
    killed_at(3, monkeypatch, **section)  # with the milestone of step 2, and no checkpoint
    killed_at(6, monkeypatch, **section)
    assert names() == ["0000002", "0000004", "0000006"]
    # What a kill leaves of a milestone under a temporary name is no milestone.
    (KEPT / ".0000008.tmp").mkdir()
    (KEPT / "0000004" / "ema.safetensors").write_bytes(b"of steps that are taken again")
    train.run(settings_with(**section))
    assert contents(Path("models/dit")) == whole


def test_a_milestone_is_there_before_a_checkpoint_that_is_past_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[int, list[str]] = {}
    original = Checkpoints.save

    def save(checkpoints: Checkpoints, state: TrainingState) -> None:
        kept[state.step] = names()
        original(checkpoints, state)

    monkeypatch.setattr(Checkpoints, "save", save)
    train.run(settings_with(keep_every=2, checkpoint_every=2))
    assert kept == {step: [f"{done:07d}" for done in range(2, step + 1, 2)] for step in (2, 4, 6)}


def test_more_steps_go_on_with_the_milestones_that_there_are(root: Path) -> None:
    train.run(settings_with(keep_every=3, steps=9))
    whole = contents(KEPT)
    Path("models/dit").rename("whole")
    train.run(settings_with(keep_every=3))
    train.run(settings_with(keep_every=3, steps=9))
    assert contents(KEPT) == whole
    assert Record.read(Path("models/dit")).files.keys() >= {f"milestones/{name}" for name in whole}  # type: ignore[union-attr]


def test_a_finished_model_is_not_trained_again_for_milestones_and_what_it_lacks_is_said(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train.run(settings_with())
    assert "keep_every" not in read_json(Path("models/dit/settings.json"))["settings"]
    before = contents(Path("models/dit"))
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr("sfd_cli.training.transformer.fit", None)
        summary = train.run(settings_with(keep_every=2))
    assert contents(Path("models/dit")) == before
    assert "milestones" not in summary
    said = capsys.readouterr().err
    assert "up to date" in said
    assert "no milestones of 3 steps from 2 to 6" in said
    assert "dit.keep_every 2" in said
    # More steps keep those of the steps to come, and say so of the others.
    assert train.run(settings_with(keep_every=2, steps=8))["milestones"] == f"1 in {KEPT}"
    assert names() == ["0000008"]
    assert "no milestones of 3 steps from 2 to 6" in capsys.readouterr().err
    train.run(settings_with(steps=8))
    assert "no milestones" not in capsys.readouterr().err


def test_with_fewer_steps_than_milestones_the_run_starts_over_with_none_of_them(root: Path) -> None:
    train.run(settings_with(keep_every=2))
    train.run(settings_with(keep_every=2, steps=4))
    assert names() == ["0000002", "0000004"]
    (aside,) = Path("models").glob("dit.*")
    assert (aside / "milestones" / "0000006").is_dir()


def test_a_damaged_milestone_is_found_by_whoever_reads_it_and_not_mended_from_a_later_checkpoint(root: Path) -> None:
    train.run(settings_with(keep_every=2))
    flip(KEPT / "0000004" / "ema.safetensors")
    damaged = open_model(KEPT / "0000004", LightningDiT)
    with refusal(KEPT / "0000004", "ema.safetensors is not what was written"):
        finished_model(damaged, "sfd train")
    finished_model(open_model(KEPT / "0000002", LightningDiT), "sfd train")
    assert verify(Path("models/dit"))[1]
    before = contents(Path("models/dit"))
    with refusal("models/dit", "milestones/0000004/ema.safetensors"):
        train.run(settings_with(keep_every=2))
    assert contents(Path("models/dit")) == before
    (KEPT / "0000004" / "checksums.json").write_text("[")
    with refusal(KEPT / "0000004" / "checksums.json", "is not valid JSON"):
        finished_model(damaged, "sfd train")


def test_weights_are_mended_with_the_milestones_left_as_they_are(root: Path) -> None:
    train.run(settings_with(keep_every=2))
    before = contents(Path("models/dit"))
    flip(Path("models/dit/ema.safetensors"))
    train.run(settings_with(keep_every=2))
    assert contents(Path("models/dit")) == before


def test_a_milestone_can_be_started_from_and_exported(root: Path) -> None:
    train.run(settings_with(keep_every=4))
    exported = export_anything(KEPT / "0000004", Path("exported.pt"))
    assert exported["kind"] == "LightningDiT"
    written = torch.load("exported.pt", weights_only=True)
    network, extra = load_dit(KEPT / "0000004")
    assert extra["classes"] == load_dit(Path("models/dit"))[1]["classes"]
    assert any(torch.equal(network.final_linear.weight, tensor) for tensor in written["ema"].values())
    milestone = KEPT / "0000004"
    settings = settings_with(init=str(milestone), steps=1, ema_decay=0.0, learning_rate=1e-12)
    elsewhere = settings.paths.model_copy(update={"dit": Path("models/later")})
    train.run(settings.model_copy(update={"paths": elsewhere}))
    later, _ = load_dit(Path("models/later"))
    assert torch.allclose(later.final_linear.weight, network.final_linear.weight, atol=1e-6)


def test_the_guide_keeps_milestones_by_its_own_section(root: Path) -> None:
    settings = settings_with()
    assert settings.guide is not None
    guide = settings.guide.model_copy(update={"keep_every": 2})
    train_guide.run(settings.model_copy(update={"guide": guide}))
    assert Milestones(Path("models/guide")).steps() == [2]


def test_more_than_the_steps_would_keep_none_and_is_refused() -> None:
    with pytest.raises(ValidationError, match="keep_every"):
        DiT(keep_every=11, steps=10)
    DiT(keep_every=10, steps=10)
    DiT(keep_every=3, steps=10)
    with pytest.raises(ValidationError):
        DiT(keep_every=-1)
    assert Settings().dit.keep_every == 0

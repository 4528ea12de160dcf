"""`sfd curve`: the scores of every milestone are those of `sfd sample` and `sfd fid`, and none is computed twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import done, refusal_of
from finished_project import flip
from pydantic import ValidationError
from refusals import refusal
from stand_ins import score_by
from tiny_project import write_training_images
from training_project import contents, project, settings_with
from two_processes import in_two_processes

from sfd_cli.config import Settings
from sfd_cli.distributed.processes import Processes
from sfd_cli.evaluation import curve as curve_module
from sfd_cli.evaluation.curve import ScoredSample, read_table, write_rows
from sfd_cli.evaluation.extractor import Extractor
from sfd_cli.evaluation.images import ImageSource
from sfd_cli.evaluation.sampled_images import SampledImages
from sfd_cli.files import read_json, write_json
from sfd_cli.networks.texture_vae import TextureVAE
from sfd_cli.pipeline.sampler import Sampler
from sfd_cli.stages import curve, fid, sample, train
from sfd_cli.weights.models import open_model

SIDE, WIDTH, IMAGES, COUNT = 16, 6, 24, 8
SAMPLED: dict[str, Any] = {"num_images": COUNT, "steps": 3, "solver": "euler", "batch_size": 4, "seed": 5}
FRECHET: dict[str, Any] = {"inception": "none", "scores": ["fd"], "baselines": False}
TABLE = Path("metrics/curve/curve.tsv")


def crude(seen: list[int]) -> Extractor:
    """Fixed random projections of the pixels, which note how many images they see."""
    weights = torch.randn(3 * SIDE * SIDE, WIDTH, generator=torch.Generator().manual_seed(0)) / 30

    def compute(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return (images.float() / 255).flatten(1) @ weights

    return Extractor.of("dinov2", WIDTH, torch.device("cpu"), compute)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer of six steps with milestones after two and four, and the images that it is scored against."""
    root = tmp_path_factory.mktemp("curve") / "project"
    project(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        record = read_json(Path("data/latents/settings.json"))
        texture_vae = open_model("models/texture_vae", TextureVAE).fingerprint
        write_json(Path("data/latents/settings.json"), record | {"inputs": {"texture_vae": texture_vae}})
        write_training_images(settings_with(), IMAGES)
        # As far apart as can be, so that no two milestones have equal scores.
        train.run(settings_with(keep_every=2, learning_rate=0.05, ema_decay=0.0))
    return root


@pytest.fixture
def seen(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A copy of the project to work in; gives the sizes of the batches of which features were computed."""
    shutil.copytree(trained, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    found: list[int] = []
    score_by(monkeypatch, lambda: crude(found))
    return found


def settings(repeats: int = 1, **sections: dict[str, Any]) -> Settings:
    base = settings_with(keep_every=2, learning_rate=0.05, ema_decay=0.0)
    values = base.model_dump() | {"curve": {"repeats": repeats}}
    for name, section in ({"sample": SAMPLED, "fid": FRECHET} | sections).items():
        values[name] = values[name] | section
    return Settings.model_validate(values)


def at(folder: str | Path, chosen: Settings, seed: int) -> dict[str, float]:
    """The scores that `sfd sample` and `sfd fid` give of a model."""
    paths = chosen.paths.model_copy(update={"dit": Path(folder), "metrics": Path("elsewhere")})
    seeded = chosen.sample.model_copy(update={"seed": seed})
    chosen = chosen.model_copy(update={"paths": paths, "sample": seeded})
    sample.run(chosen)
    fid.run(chosen)
    found = read_json(Path("elsewhere/fid.json"))
    keys = ("fd_dinov2", "kid_dinov2", "precision_dinov2", "recall_dinov2")
    return {key: found[key] for key in keys if key in found}


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds of all batches that are sampled."""
    found: list[int] = []
    original = Sampler.latents

    def latents(sampler: Sampler, inputs: Any, *arguments: Any, **named: Any) -> torch.Tensor:
        found.append(inputs.seed)
        return original(sampler, inputs, *arguments, **named)

    monkeypatch.setattr(Sampler, "latents", latents)
    return found


def test_every_row_is_what_sample_and_fid_give_of_that_model(seen: list[int]) -> None:
    chosen = settings(repeats=2, fid={"inception": "none", "batch_size": 5, "num_images": 7})
    summary = curve.run(chosen)
    assert sum(seen) == IMAGES + 6 * 7  # the reference is looked at once
    rows = read_json(Path("metrics/curve/scores.json"))
    assert len(rows) == 6
    checked = {0: ("models/dit/milestones/0000002", 5), 5: ("models/dit", 6)}
    for row, (folder, seed) in checked.items():
        assert rows[row]["scores"] == at(folder, chosen, seed)  # to the bit
    expected = [row["scores"] for row in rows]
    assert set(expected[0]) == {"fd_dinov2", "kid_dinov2", "precision_dinov2", "recall_dinov2"}
    assert len({scores["fd_dinov2"] for scores in expected}) == 6
    table = read_table(TABLE)
    assert table["step"] == [2, 4, 6]
    for key in expected[0]:
        values = np.array([scores[key] for scores in expected]).reshape(3, 2)
        assert table[f"{key}_mean"] == pytest.approx(values.mean(axis=1), rel=1e-12)
        assert table[f"{key}_std"] == pytest.approx(values.std(axis=1, ddof=1), rel=1e-9, abs=1e-15)
        assert table[f"{key}_min"] == values.min(axis=1).tolist()
    assert summary["models"] == 3
    assert summary["fd_dinov2"]["last"].startswith(f"{table['fd_dinov2_mean'][-1]:.4g} ± ")
    assert summary["fd_dinov2"]["last"].endswith("step 6")
    lowest = int(np.argmin(table["fd_dinov2_mean"]))
    assert summary["fd_dinov2"]["lowest"].endswith(f"step {table['step'][lowest]:.0f}")


@pytest.mark.slow
@pytest.mark.parametrize("edit", [{"to_seed": 3}, {"start_time": 0.5}, {"keep": "semantics"}], ids=str)
def test_pictures_made_otherwise_than_from_noise_and_class_have_no_curve(seen: list[int], edit: dict[str, Any]) -> None:
    with refusal(f"sample.{next(iter(edit))}"):
        curve.run(settings(sample=edit))
    assert not Path("metrics/curve").exists()


def test_a_stochastic_solver_draws_by_the_seed_of_the_repeat(seen: list[int]) -> None:
    chosen = settings(repeats=2, sample={**SAMPLED, "solver": "euler_maruyama", "delta_t": 0.0})
    curve.run(chosen)
    rows = read_json(Path("metrics/curve/scores.json"))
    assert rows[-1]["scores"] == at("models/dit", chosen, 6)


@pytest.mark.parametrize(("values", "step"), [([3.0, 1.0, 2.5], 7), ([0.1], 1000)])
def test_the_table_has_mean_spread_and_minimum_as_numpy_has_them(
    tmp_path: Path, values: list[float], step: int
) -> None:
    seeds = range(3, 3 + len(values))
    rows = [
        ScoredSample(model="a", seed=seed, scores={"fid": value}) for seed, value in zip(seeds, values, strict=True)
    ]
    others = [
        ScoredSample(model="a", seed=99, scores={"fid": -1.0}),
        ScoredSample(model="of another training", seed=3, scores={"fid": -1.0}),
        ScoredSample(model="b", seed=99, scores={"fid": -1.0}),
    ]
    write_rows(tmp_path, [*others, *rows], {step: "a", step + 1: "b"}, seeds)
    table = read_table(tmp_path / "curve.tsv")
    assert table["step"] == [step]  # of the other model there are not all repeats
    assert table["fid_mean"] == [pytest.approx(np.mean(values), rel=1e-15)]
    assert table["fid_min"] == [np.min(values)]
    if len(values) > 1:
        assert table["fid_std"] == [pytest.approx(np.std(values, ddof=1), rel=1e-14)]
    else:
        assert np.isnan(table["fid_std"]).all()


class KilledError(Exception):
    """A stand-in for a kill: nothing of the run comes after it."""


def test_a_run_that_is_killed_goes_on_with_what_is_not_scored_yet_to_the_same_bytes(
    seen: list[int], sampled: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = settings(repeats=2)
    curve.run(chosen)
    whole = contents(Path("metrics/curve"))
    assert sampled == [5, 5, 6, 6] * 3  # two batches each
    shutil.move("metrics/curve", "whole")
    original, calls = curve_module.SampleScorer.__call__, iter(range(100))

    def killed(scorer: Any, images: ImageSource, what: str) -> dict[str, float]:
        if next(calls) == 3:
            raise KilledError
        return original(scorer, images, what)

    with monkeypatch.context() as patch:
        patch.setattr(curve_module.SampleScorer, "__call__", killed)
        with pytest.raises(KilledError):
            curve.run(chosen)
    assert read_table(TABLE)["step"] == [2]
    sampled.clear()
    curve.run(chosen)
    assert sampled == [6, 6, 5, 5, 6, 6]
    assert contents(Path("metrics/curve")) == whole
    sampled.clear()
    capsys.readouterr()
    assert curve.run(chosen)["models"] == 3
    assert sampled == []
    assert "up to date" in capsys.readouterr().err


def test_more_repeats_and_more_training_are_added_and_fewer_are_read_off(seen: list[int], sampled: list[int]) -> None:
    curve.run(settings())
    one = TABLE.read_bytes()
    curve.run(settings(repeats=2))
    two = TABLE.read_bytes()
    assert sampled == [5, 5] * 3 + [6, 6] * 3
    sampled.clear()
    curve.run(settings())
    assert TABLE.read_bytes() == one != two
    train.run(settings_with(keep_every=2, learning_rate=0.05, ema_decay=0.0, steps=8))
    curve.run(settings(repeats=2))
    assert sampled == [5, 5, 6, 6]
    assert TABLE.read_bytes().startswith(two)
    assert read_table(TABLE)["step"] == [2, 4, 6, 8]


def test_rows_of_other_settings_are_put_aside_and_those_of_another_training_not_shown(
    seen: list[int], sampled: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    curve.run(settings())
    first = TABLE.read_bytes()
    curve.run(settings(sample={**SAMPLED, "steps": 2}))
    assert "sample.steps 3 -> 2" in capsys.readouterr().err
    (aside,) = Path("metrics").glob("curve.*")
    assert (aside / "curve.tsv").read_bytes() == first
    assert read_table(TABLE)["step"] == [2, 4, 6]
    sampled.clear()
    other = settings_with(keep_every=3, learning_rate=0.05, ema_decay=0.0, seed=1)
    train.run(other)
    curve.run(settings(sample={**SAMPLED, "steps": 2}))
    assert len(sampled) == 2 * 2  # the last milestone is the model
    assert read_table(TABLE)["step"] == [3, 6]


@pytest.mark.slow
def test_a_damaged_table_is_made_again_without_sampling(seen: list[int], sampled: list[int]) -> None:
    curve.run(settings())
    whole = contents(Path("metrics/curve"))
    TABLE.write_text("step\n")
    sampled.clear()
    curve.run(settings())
    assert contents(Path("metrics/curve")) == whole
    assert sampled == []


def test_milestones_of_a_training_that_is_not_finished_are_scored(
    seen: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    record = read_json(Path("models/dit/settings.json"))
    for name in ("settings.json", ".settings.json"):
        write_json(Path("models/dit", name), record | {"complete": False, "seal": ""})
    shutil.rmtree("models/dit/milestones/0000006")
    curve.run(settings())
    assert read_table(TABLE)["step"] == [2, 4]
    assert "still in training" in capsys.readouterr().err


def test_an_earlier_self_guides(seen: list[int]) -> None:
    milestone = Path("models/dit/milestones/0000002")
    guided = settings(sample={**SAMPLED, "guidance": "autoguidance", "scale": 2.0})
    guided = guided.model_copy(update={"paths": guided.paths.model_copy(update={"guide": milestone})})
    found = at("models/dit", guided, 5)
    assert found["fd_dinov2"] != at("models/dit", settings(), 5)["fd_dinov2"]
    # Guided by itself a model goes where it goes alone.
    alone = at(milestone, settings(), 5)
    assert at(milestone, guided, 5)["fd_dinov2"] == pytest.approx(alone["fd_dinov2"], rel=1e-4)
    curve.run(guided)
    assert read_json(Path("metrics/curve/scores.json"))[-1]["scores"] == found


def test_a_model_without_milestones_is_refused_with_the_setting_that_keeps_them(seen: list[int]) -> None:
    shutil.rmtree("models/dit/milestones")
    with refusal("models/dit", "dit.keep_every"):
        curve.run(settings())
    shutil.rmtree("models/dit")
    with refusal("models/dit", "sfd train"):
        curve.run(settings())
    assert not Path("metrics/curve").exists()


def test_a_damaged_milestone_or_reference_is_refused_before_anything_is_written(seen: list[int]) -> None:
    with refusal("sample.num_images"):
        curve.run(settings(sample={**SAMPLED, "num_images": 1}))
    with refusal("missing.npz", "does not exist"):
        curve.run(settings(fid={"inception": "none", "reference": Path("missing.npz")}))
    with refusal("models/dit/milestones/0000002", "weights present: ema"):
        curve.run(settings(sample={**SAMPLED, "weights": "model"}))
    record = read_json(Path("models/dit/settings.json"))
    for name in ("settings.json", ".settings.json"):
        write_json(Path("models/dit", name), record | {"complete": False, "seal": ""})
    flip(Path("models/dit/milestones/0000004/ema.safetensors"))
    with refusal("models/dit/milestones/0000004", "ema.safetensors"):
        curve.run(settings())
    assert not Path("metrics/curve").exists()
    with pytest.raises(ValidationError, match="repeats"):
        settings(repeats=0)


def test_the_command_scores_and_refuses(seen: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--sample-num-images", 4, "--sample-steps", 2, "--sample-batch-size", 4, "--fid-inception", "none"]
    printed = done("curve", *flags).out
    assert str(TABLE) in printed
    assert "fd_dinov2" in printed
    assert refusal_of("curve", "--repeats", 0).subject == "--repeats"


@pytest.mark.slow
def test_two_processes_share_the_rows_and_write_the_same_table(
    seen: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(repeats=1)
    curve.run(chosen)
    alone = contents(Path("metrics/curve"))
    shutil.rmtree("metrics/curve")
    monkeypatch.setenv("WORLD_SIZE", "2")

    def work(processes: Processes) -> int:
        seen.clear()
        curve.run(chosen)
        return sum(seen)

    # Two rows and one, each after a look of its own at the reference.
    assert in_two_processes(tmp_path, work) == [IMAGES + 2 * COUNT, IMAGES + COUNT]
    together = contents(Path("metrics/curve"))
    assert together["curve.tsv"] == alone["curve.tsv"]
    assert json.loads(together["scores.json"]) == json.loads(alone["scores.json"])


@pytest.mark.parametrize(("batch", "size"), [(8, 5), (3, 7), (4, 4), (5, 40)])
def test_images_come_in_batches_of_the_size_that_is_asked_for(batch: int, size: int) -> None:
    class Counting:
        """A sampler that gives every image its number."""

        def batches(self, inputs: Any, indices: range) -> Any:
            for start in range(0, len(indices), batch):
                rows = list(indices[start : start + batch])
                yield rows, torch.tensor(rows)[:, None]

    make: Callable[..., SampledImages] = SampledImages
    images = make(Counting(), None, range(3, 26))
    found = list(images.batches(size))
    assert [len(part) for part in found] == [size] * (23 // size) + [23 % size] * (23 % size > 0)
    assert torch.cat(found)[:, 0].tolist() == list(range(3, 26))
    assert images.count == 23

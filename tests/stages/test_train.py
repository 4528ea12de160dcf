"""`sfd train`: the whole objective, artifacts that do not tell how often the run was interrupted, and continuing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from artifact_records import RECORDS
from model_loading import load_dit
from refusals import refusal
from torch import Tensor, nn
from torch._dynamo.utils import counters
from training_project import (
    CLASSES,
    COUNT,
    NETWORK,
    PARAMS,
    SEMANTIC,
    TEXTURE,
    WIDTH,
    contents,
    project,
    settings_with,
    write_latents,
)

from sfd_cli.artifacts.recipe import Record
from sfd_cli.config import DiT, load_settings
from sfd_cli.data.near_duplicates import hold_out, store_clusters
from sfd_cli.data.store import Store
from sfd_cli.diffusion.schedule import AsynchronousSchedule
from sfd_cli.diffusion.training_times import TrainingTimes
from sfd_cli.distributed.processes import Processes
from sfd_cli.errors import SettingError
from sfd_cli.files import read_json, write_json
from sfd_cli.formats.reference_dit import dit_to_reference
from sfd_cli.stages import train, train_guide
from sfd_cli.training.settings import LoopSettings
from sfd_cli.training.validation import Validation
from sfd_cli.training.velocity_task import VelocityTask

CHECKPOINTS = Path("models/.checkpoints/dit")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    project(tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def logged(name: str = "dit") -> set[str]:
    return {path.stem for path in Path("metrics", name, "plots", "metrics").glob("*.tsv")}


def logged_values(name: str) -> np.ndarray:
    return np.loadtxt(f"metrics/dit/plots/metrics/{name}.tsv", skiprows=1)


def test_a_trained_model_says_all_that_sampling_needs(root: Path) -> None:
    summary = train.run(settings_with())
    model, extra = load_dit(Path("models/dit"))
    assert model.config.in_channels == TEXTURE + SEMANTIC
    assert model.config.semantic_channels == SEMANTIC
    assert model.config.num_classes == 3
    assert extra["statistics"] == {"mean": [1.0] * 5, "std": [3.0] * 5}
    assert extra["delta_t"] == 0.3
    assert extra["classes"] == CLASSES
    assert extra["image_size"] == 16
    last, _ = load_dit(Path("models/dit"), "model")
    assert not torch.equal(last.final_linear.weight, model.final_linear.weight)
    assert logged() >= {"loss", "mse", "cosine", "repa", "gradient_norm", "learning_rate"}
    assert summary["images_per_second"] > 0
    assert summary["steps"] == 6
    assert np.isfinite(summary["loss"])


def test_equal_settings_give_equal_bytes_however_the_run_was_cut(root: Path) -> None:
    train.run(settings_with())
    whole, state = contents(Path("models/dit")), contents(CHECKPOINTS)
    Path("models/dit").rename("whole")
    for steps in (1, 5, 6):
        train.run(settings_with(steps=steps))
    assert contents(Path("models/dit")) == whole
    assert set(whole) == {*RECORDS, "config.json", "model.safetensors", "ema.safetensors"}
    assert contents(CHECKPOINTS) == state
    assert [Path(name).parts[1:] for name in state if "optimizer" in name] == [
        ("step-0000006", "optimizer.safetensors")
    ]


def test_latents_without_mirror_images_are_trained_on_as_they_are_and_resume_to_the_same_bytes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree("data/latents")
    write_latents(Path("data/latents"), flips=1)
    store, fetched = Store(Path("data/latents")), []
    original = VelocityTask.fetch

    def watched(task: VelocityTask, indices: np.ndarray, flips: np.ndarray) -> dict[str, Tensor]:
        batch = original(task, indices, flips)
        for name in ("texture", "semantic", "features"):
            assert np.array_equal(batch[name].numpy(), store.read(name, indices)[:, 0])
        fetched.append(flips)
        return batch

    monkeypatch.setattr(VelocityTask, "fetch", watched)
    train.run(settings_with())
    assert not np.concatenate(fetched).any()
    whole = contents(Path("models/dit"))
    Path("models/dit").rename("whole")
    for steps in (1, 5, 6):
        train.run(settings_with(steps=steps))
    assert contents(Path("models/dit")) == whole


NEW: dict[str, Any] = {
    "holdout": 0.2,
    "optimizer": "muon",
    "ema_warmup": True,
    "time_mean": -0.5,
    "prediction": "data",
    "precision": "bf16",
    "dispersive_weight": 0.5,
    "dispersive_group": 4,
}


def test_with_every_later_setting_a_run_in_parts_gives_the_bytes_of_one_in_one_go(root: Path) -> None:
    train.run(settings_with(**NEW))
    whole = contents(Path("models/dit"))
    assert NEW.items() <= read_json(Path("models/dit/settings.json"))["settings"].items()
    Path("models/dit").rename("whole")
    for steps in (1, 5, 6):
        train.run(settings_with(**NEW, steps=steps))
    assert contents(Path("models/dit")) == whole


def test_images_held_out_are_never_trained_on_and_validated_at_every_checkpoint(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[np.ndarray] = []
    original = VelocityTask.fetch
    monkeypatch.setattr(VelocityTask, "fetch", lambda task, i, f: (fetched.append(i), original(task, i, f))[1])
    summary = train.run(settings_with(holdout=0.2, steps=9))
    split = hold_out(store_clusters(Store(Path("data/latents"))), 0.2, seed=0)
    assert len(split.held_out) == 4
    # Nine batches of eight are four and a half epochs of the other sixteen.
    assert set(np.concatenate(fetched).tolist()) == set(split.training.tolist())
    streams = {"texture_both", "texture_alone", "texture", "semantic_both", "semantic_alone", "semantic"}
    names = {f"{prefix}_{name}" for prefix in ("validation", "training") for name in streams}
    assert {name for name in logged() if name.startswith(("validation", "training"))} == names
    for name in names:
        assert logged_values(name)[:, 0].tolist() == [4, 8, 9]
    latest = read_json(Path("metrics/dit/metrics.json"))
    assert summary["validation_texture"] == latest["validation_texture"] == logged_values("validation_texture")[-1, 1]
    assert summary["validation_semantic"] == latest["validation_semantic"]

    # What is logged last is the error of the weights that sampling takes.
    section = settings_with(holdout=0.2).dit
    task = VelocityTask(Store(Path("data/latents")), section, None, torch.device("cpu"))
    found = Validation(task, section, split, Processes())(load_dit(Path("models/dit"))[0])
    assert {name: latest[name] for name in names} == pytest.approx(found, rel=1e-9)


def test_validation_changes_no_weight_and_a_run_in_parts_finds_the_same_errors(root: Path) -> None:
    train.run(settings_with(holdout=0.2))
    whole, errors = contents(Path("models/dit")), logged_values("validation_texture_both")
    Path("models/dit").rename("whole")
    for steps in (4, 6):
        train.run(settings_with(holdout=0.2, steps=steps))
    assert contents(Path("models/dit")) == whole
    assert logged_values("validation_texture_both").tolist() == errors.tolist()
    Path("models/dit").rename("parts")
    train.run(settings_with(holdout=0.2, checkpoint_every=1))
    assert len(logged_values("validation_texture_both")) == 6
    assert contents(Path("models/dit"))["model.safetensors"] == whole["model.safetensors"]


def test_without_a_holdout_a_run_is_what_it_was(root: Path) -> None:
    train.run(settings_with())
    assert "holdout" not in read_json(Path("models/dit/settings.json"))["settings"]
    assert not {name for name in logged() if name.startswith(("validation", "training"))}


@pytest.mark.parametrize("holdout", [0.99, 0.01])
def test_a_split_with_an_empty_side_is_refused_before_anything_is_moved(root: Path, holdout: float) -> None:
    train.run(settings_with(steps=1))
    before = contents(Path("models"))
    with refusal("dit.holdout", f"{holdout:g}", "20 images"):
        train.run(settings_with(holdout=holdout))
    guide = load_settings(Path("params.yaml"), {"guide": {"holdout": holdout}})
    with refusal("guide.holdout", f"{holdout:g}", "20 images"):
        train_guide.run(guide)
    assert contents(Path("models")) == before


def test_muon_without_a_pytorch_that_has_it_is_refused_before_anything_is_moved(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train.run(settings_with(steps=1))
    before = contents(Path("models"))
    monkeypatch.delattr(torch.optim, "Muon")
    with refusal("dit.optimizer", "2.9", "adamw"):
        train.run(settings_with(optimizer="muon"))
    assert contents(Path("models")) == before


def test_a_model_that_predicts_data_is_another_model_and_resumes_exactly(root: Path) -> None:
    train.run(settings_with())
    Path("models/dit").rename("velocity")
    train.run(settings_with(prediction="data"))
    whole = contents(Path("models/dit"))
    assert load_dit(Path("models/dit"))[0].config.prediction == "data"
    assert whole["model.safetensors"] != Path("velocity/model.safetensors").read_bytes()
    Path("models/dit").rename("whole")
    for steps in (5, 6):
        train.run(settings_with(prediction="data", steps=steps))
    assert contents(Path("models/dit")) == whole
    with refusal("dit.init", "prediction data instead of velocity"):
        train.run(settings_with(init="whole"))


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint_activations", [False, True])
def test_compiled_training_is_eager_training_and_resumes_exactly(root: Path, checkpoint_activations: bool) -> None:
    train.run(settings_with(log_every=1))
    eager = {name: logged_values(name) for name in ("loss", "mse", "cosine", "repa", "gradient_norm")}
    Path("models/dit").rename("eager")
    compiled: dict[str, Any] = {"compile": True, "log_every": 1, "checkpoint_activations": checkpoint_activations}
    torch.compiler.reset()
    counters.clear()
    train.run(settings_with(**compiled))
    assert counters["stats"]["unique_graphs"] == 1
    for name, values in eager.items():
        np.testing.assert_allclose(logged_values(name), values, rtol=1e-4)
    whole = contents(Path("models/dit"))
    Path("models/dit").rename("whole")
    for steps in (2, 6):
        train.run(settings_with(steps=steps, **compiled))
    assert contents(Path("models/dit")) == whole


def test_a_finished_run_is_up_to_date_and_more_steps_continue_it(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train.run(settings_with())
    # How a run is logged and carried out is not what it computes.
    train.run(settings_with(log_every=3, accumulate=2))
    assert "up to date" in capsys.readouterr().err
    assert Record.read(Path("models/dit")).settings["compile"] is False, "what auto is on a CPU"  # type: ignore[union-attr]
    fetched: list[np.ndarray] = []
    original = VelocityTask.fetch
    monkeypatch.setattr(VelocityTask, "fetch", lambda task, i, f: (fetched.append(i), original(task, i, f))[1])
    train.run(settings_with(steps=8))
    assert len(fetched) == 2
    assert read_json(Path("models/dit/settings.json"))["facts"]["steps"] == 8


def test_fewer_steps_than_done_start_afresh_and_keep_the_longer_run(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.run(settings_with(steps=8))
    longer = Path("models/dit/model.safetensors").read_bytes()
    assert train.run(settings_with(steps=6))["steps"] == 6
    assert "step 8 already, past 6" in capsys.readouterr().err
    (aside,) = Path("models").glob("dit.*")
    assert (aside / "model.safetensors").read_bytes() == longer


def test_where_the_learning_rate_decays_another_number_of_steps_is_another_run(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.run(settings_with(decay=0.5, log_every=1))
    assert logged_values("learning_rate")[:, 1] == pytest.approx([1e-3] * 4 + [2e-3 / 3, 1e-3 / 3])
    six = contents(Path("models/dit"))
    train.run(settings_with(decay=0.5, log_every=2))
    assert "up to date" in capsys.readouterr().err
    train.run(settings_with(decay=0.5, steps=8))
    assert "steps 6 -> 8" in capsys.readouterr().err
    (aside,) = Path("models").glob("dit.*")
    assert (aside / "model.safetensors").read_bytes() == six["model.safetensors"]
    eight = contents(Path("models/dit"))
    Path("models/dit").rename("eight")
    train.run(settings_with(decay=0.5, steps=8))
    assert contents(Path("models/dit")) == eight


def test_a_finished_model_that_lost_a_file_is_made_again_from_its_checkpoint(root: Path) -> None:
    train.run(settings_with())
    whole = contents(Path("models/dit"))
    Path("models/dit/ema.safetensors").unlink()
    train.run(settings_with())
    assert contents(Path("models/dit")) == whole


def test_other_settings_start_afresh(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.run(settings_with())
    train.run(settings_with(learning_rate=1e-2, steps=2))
    assert "learning_rate 0.001 -> 0.01" in capsys.readouterr().err
    assert [path.name for path in CHECKPOINTS.glob("*/*")] == ["step-0000002"]


def test_a_model_that_is_put_aside_has_its_checkpoints_with_it(root: Path) -> None:
    train.run(settings_with(steps=8))
    eight = contents(Path("models/dit"))
    shutil.rmtree("models/dit")
    train.run(settings_with())
    train.run(settings_with(learning_rate=1e-2, steps=2))
    (aside,) = Path("models").glob("dit.*")
    shutil.rmtree("models/dit")
    shutil.rmtree(CHECKPOINTS)
    aside.rename("models/dit")
    CHECKPOINTS.with_name(aside.name).rename(CHECKPOINTS)
    train.run(settings_with(steps=8))
    assert contents(Path("models/dit")) == eight
    assert not list(Path("models").glob("dit.*"))


def test_a_run_whose_model_was_deleted_starts_over(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.run(settings_with())
    shutil.rmtree("models/dit")
    capsys.readouterr()
    train.run(settings_with())
    assert "steps 1 to 6" in capsys.readouterr().err


def test_a_finished_model_without_its_checkpoints_is_kept_when_more_steps_are_asked_for(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one that `dvc pull` brought."""
    train.run(settings_with())
    six = contents(Path("models/dit"))
    shutil.rmtree(CHECKPOINTS)
    capsys.readouterr()
    train.run(settings_with())
    assert "is up to date" in capsys.readouterr().err
    train.run(settings_with(steps=8))
    assert "without its checkpoints" in capsys.readouterr().err
    (aside,) = Path("models").glob("dit.*")
    assert contents(aside) == six
    assert read_json(Path("models/dit/settings.json"))["facts"]["steps"] == 8


def test_the_guide_has_its_own_section_and_folders(root: Path) -> None:
    train_guide.run(settings_with())
    model, _ = load_dit(Path("models/guide"))
    assert model.config.width == 8
    assert "repa" not in logged("guide")
    assert not Path("models/dit").exists()


def test_sample_grids_are_drawn_on_the_way_and_at_the_end(root: Path) -> None:
    train.run(settings_with(steps=3, sample_every=2))
    folder = Path("metrics/dit/samples")
    assert sorted(path.name for path in folder.iterdir()) == ["step-0000002.png", "step-0000003.png"]
    train.run(settings_with(steps=1, seed=1, sample_every=2))
    assert [path.name for path in folder.iterdir()] == ["step-0000001.png"]


@pytest.mark.parametrize(
    ("change", "terms"),
    [
        ({"repa": "decoded", "repa_mode": "cos_mse"}, {"mse", "cosine", "repa"}),
        ({"repa": "none", "patch_size": 2}, {"mse", "cosine"}),
        ({"semantics": False, "time_embedding": "single", "delta_t": 0.0}, {"mse", "cosine", "repa"}),
        ({"rope": False, "qk_norm": False, "swiglu": False, "rms_norm": False}, {"mse", "cosine", "repa"}),
        ({"precision": "bf16", "checkpoint_activations": True, "accumulate": 2}, {"mse", "cosine", "repa"}),
        ({"prediction": "data", "precision": "bf16"}, {"mse", "cosine", "repa"}),
        ({"repa": "none", "dispersive_weight": 0.5, "dispersive_group": 8}, {"mse", "cosine", "dispersive"}),
    ],
    ids=["decoded", "patch 2 without repa", "textures only", "classic DiT", "bf16", "data", "dispersive"],
)
def test_every_kind_of_model_trains(root: Path, change: dict[str, Any], terms: set[str]) -> None:
    summary = train.run(settings_with(steps=2, **change))
    assert np.isfinite(summary["loss"])
    assert {"mse", "cosine", "repa", "dispersive"} & logged() == terms
    load_dit(Path("models/dit"))


def test_without_a_weight_the_dispersive_loss_changes_no_byte(root: Path) -> None:
    train.run(settings_with())
    model, record = (Path(f"models/dit/{name}") for name in ("model.safetensors", "settings.json"))
    before, without = model.read_bytes(), record.read_text()
    assert "dispersive" not in without
    train.run(settings_with(dispersive_depth=2, dispersive_temperature=3.0, dispersive_group=5))
    assert model.read_bytes() == before
    train.run(settings_with(dispersive_weight=0.5, dispersive_group=8))
    assert model.read_bytes() != before


def test_activation_checkpointing_changes_no_weight(root: Path) -> None:
    train.run(settings_with())
    Path("models/dit").rename("plain")
    train.run(settings_with(checkpoint_activations=True))
    assert contents(Path("plain"))["model.safetensors"] == contents(Path("models/dit"))["model.safetensors"]


def test_stored_repa_without_stored_features_is_refused(root: Path) -> None:
    write_latents(Path("data/latents"), features=False)
    with refusal("dit.repa", "data/latents", "latents.store_features"):
        train.run(settings_with())


def test_missing_latents_are_named_with_the_command_that_makes_them(root: Path) -> None:
    Path("data/latents/settings.json").unlink()
    with refusal("data/latents", "sfd encode-latents"):
        train.run(settings_with())


class Knowing(nn.Module):
    """A network that knows the clean latents, but for what it adds to them."""

    def __init__(self, data: Tensor, added: float = 0.0) -> None:
        super().__init__()
        self.predicted = data + added

    def forward(self, x: Tensor, t_texture: Tensor, t_semantic: Tensor, *others: Any) -> Tensor:
        times = [t_texture] * TEXTURE + [t_semantic] * SEMANTIC
        left = torch.maximum(1 - torch.stack(times, dim=1), torch.tensor(0.05))
        return (self.predicted - x) / left[:, :, None, None]


def test_a_network_that_knows_the_data_loses_nothing_at_any_time(root: Path) -> None:
    store = Store(Path("data/latents"))
    section = DiT(**NETWORK | {"repa": "none", "prediction": "data"})
    task = VelocityTask(store, section, None, torch.device("cpu"))
    indices, flips = np.arange(COUNT), np.zeros(COUNT, np.int64)
    batch, draws = task.fetch(indices, flips), task.draw(torch.Generator().manual_seed(0), COUNT)
    # Semantics stand still at their data from 1 on, textures come within 0.05 of theirs from 1.25 on.
    progress = torch.linspace(0, 1.29, COUNT)
    draws["level"] = progress / 1.3
    raw = np.concatenate([store.read("texture", indices, flips), store.read("semantic", indices, flips)], axis=1)
    data = (torch.from_numpy(raw).float() - 1) / 3
    losses = task.losses(Knowing(data), batch, draws)
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(dict.fromkeys(losses, 0.0), abs=1e-5)

    # An error of 0.1 in every channel is one of 0.1 over the time left in velocity.
    wrong = task.losses(Knowing(data, 0.1), batch, draws)["mse"]
    left = [[1 - max(float(T) - 0.3, 0), 1 - min(float(T), 1)] for T in progress]
    texture, semantic = (np.mean([(0.1 / max(pair[i], 0.05)) ** 2 for pair in left]) for i in (0, 1))
    assert wrong.item() == pytest.approx((TEXTURE * texture + 2 * SEMANTIC * semantic) / 5, rel=1e-3)


class Recorder(nn.Module):
    """A network that predicts zero and keeps what it was given."""

    def forward(self, x: Tensor, t_texture: Tensor, t_semantic: Tensor, labels: Tensor, *others: Any) -> Tensor:
        self.seen = (x, t_texture, t_semantic, labels)
        return torch.zeros_like(x)


def test_the_network_sees_normalised_latents_between_noise_and_data_and_the_null_class(root: Path) -> None:
    store = Store(Path("data/latents"))
    section = DiT(**NETWORK | {"repa": "none", "label_dropout": 0.5})
    task, network = VelocityTask(store, section, None, torch.device("cpu")), Recorder()
    indices, flips = np.arange(COUNT), np.arange(COUNT) % 2
    batch, draws = task.fetch(indices, flips), task.draw(torch.Generator().manual_seed(0), COUNT)
    losses = task.losses(network, batch, draws)
    x, t_texture, t_semantic, labels = network.seen
    assert 0 < draws["dropped"].sum() < COUNT
    assert torch.equal(labels, torch.where(draws["dropped"], 3, torch.arange(COUNT) % 3))
    progress = 1.3 * draws["level"]
    torch.testing.assert_close(t_texture, (progress - 0.3).clamp(min=0))
    torch.testing.assert_close(t_semantic, progress.clamp(max=1))
    raw = np.concatenate([store.read("texture", indices, flips), store.read("semantic", indices, flips)], axis=1)
    data = (torch.from_numpy(raw).float() - 1) / 3
    t = torch.stack([t_texture] * TEXTURE + [t_semantic] * SEMANTIC, dim=1)[:, :, None, None]
    torch.testing.assert_close(x, t * data + (1 - t) * draws["noise"])
    weight = torch.tensor([1.0] * TEXTURE + [2.0] * SEMANTIC)[:, None, None]
    torch.testing.assert_close(losses["mse"], (weight * (data - draws["noise"]).square()).mean())
    torch.testing.assert_close(losses["loss"], losses["mse"] + losses["cosine"])


def test_times_are_drawn_about_the_mean_of_the_section(root: Path) -> None:
    def drawn(**section: float) -> Tensor:
        settings = DiT(**NETWORK | {"repa": "none", **section})
        task = VelocityTask(Store(Path("data/latents")), settings, None, torch.device("cpu"))
        return task.draw(torch.Generator().manual_seed(0), COUNT)["level"].double()

    torch.testing.assert_close(drawn(time_mean=-0.8).logit(), drawn().logit() - 0.8, rtol=0, atol=1e-4)


def test_the_corrected_objective_is_that_of_its_times_and_weights(root: Path) -> None:
    """Every setting of the times arrives: the law, the mean, leads of their own, and noise on what has arrived."""
    chosen = {"objective": "corrected", "time_mean": -0.4, "lead_jitter": 1.0, "leader_noise": 0.3, "delta_t": 0.6}
    store = Store(Path("data/latents"))
    task = VelocityTask(store, DiT(**NETWORK | {"repa": "none"} | chosen), None, torch.device("cpu"))
    network, indices = Recorder(), np.arange(COUNT)
    batch, draws = task.fetch(indices, np.zeros(COUNT, int)), task.draw(torch.Generator().manual_seed(3), COUNT)
    losses = task.losses(network, batch, draws)

    expected = TrainingTimes(AsynchronousSchedule(0.6), "corrected", -0.4, 1.0, 0.3)
    times, weights = expected.of(draws)
    _, t_texture, t_semantic, _ = network.seen
    assert torch.equal(t_texture, times.texture)
    assert torch.equal(t_semantic, times.semantic)
    assert ((times.semantic > 0.7) & (times.semantic < 1) & (weights.semantic == 0)).any()  # shown noisy, not counted
    raw = np.concatenate([store.read(name, indices, np.zeros(COUNT, int)) for name in ("texture", "semantic")], axis=1)
    target = (torch.from_numpy(raw).float() - 1) / 3 - draws["noise"]
    both = torch.stack([weights.texture] * TEXTURE + [2 * weights.semantic] * SEMANTIC, dim=1)[:, :, None, None]
    torch.testing.assert_close(losses["mse"], (both * target.square()).mean())
    torch.testing.assert_close(losses["cosine"], torch.tensor(1.0))  # of a prediction of zero
    assert losses["loss"].item() == pytest.approx(losses["mse"].item() + 1)


class Constant(Recorder):
    """A network that predicts one in every channel."""

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        return torch.ones_like(x)


def test_the_cosine_of_the_corrected_objective_is_weighted_too(root: Path) -> None:
    store = Store(Path("data/latents"))
    section = DiT(**NETWORK | {"repa": "none", "objective": "corrected"})
    task, indices = VelocityTask(store, section, None, torch.device("cpu")), np.arange(COUNT)
    batch, draws = task.fetch(indices, np.zeros(COUNT, int)), task.draw(torch.Generator().manual_seed(3), COUNT)
    found = task.losses(Constant(), batch, draws)["cosine"]
    raw = np.concatenate([store.read(name, indices, np.zeros(COUNT, int)) for name in ("texture", "semantic")], axis=1)
    target = (torch.from_numpy(raw).double() - 1) / 3 - draws["noise"].double()
    _, weights = TrainingTimes(AsynchronousSchedule(0.3), "corrected").of(draws)
    both = torch.stack([weights.texture] * TEXTURE + [weights.semantic] * SEMANTIC, dim=1)[:, :, None, None].double()
    dots, lengths = (both * target).sum(1), (both * target.square()).sum(1) * both.sum(1)
    torch.testing.assert_close(found.double(), 1 - (dots / lengths.sqrt()).mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_for_a_gpu_are_read_into_pinned_memory(root: Path) -> None:
    store = Store(Path("data/latents"))
    task = VelocityTask(store, DiT(**NETWORK | {"repa": "none"}), None, torch.device("cuda"))
    indices, flips = np.arange(COUNT), np.arange(COUNT) % 2
    for _ in range(3):
        batch = task.fetch(indices, flips)
        for name in ("texture", "semantic"):
            assert batch[name].is_pinned()
            assert np.array_equal(batch[name].cuda().cpu().numpy(), store.read(name, indices, flips))


def test_two_processes_and_their_micro_batches_give_the_model_and_the_curves_of_one(root: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    several: dict[str, Any] = {"holdout": 0.2, "dispersive_weight": 0.5, "dispersive_group": 2}
    command += ["-m", "sfd_cli", "train", "--accumulate", "2", "--holdout", "0.2"]
    command += ["--dispersive-weight", "0.5", "--dispersive-group", "2"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("parameters") == 1
    # One process goes on where the two stopped.
    train.run(settings_with(steps=8, **several))
    shared = load_dit(Path("models/dit"))[0].state_dict()
    names = ("loss", "dispersive", "validation_texture", "training_semantic_alone")
    curves = {name: logged_values(name) for name in names}
    for folder in ("models", "metrics"):
        (Path(folder) / "dit").rename(Path(folder) / "several")
    train.run(settings_with(steps=6, **several))
    train.run(settings_with(steps=8, **several))
    for name, tensor in load_dit(Path("models/dit"))[0].state_dict().items():
        torch.testing.assert_close(shared[name], tensor, rtol=0, atol=1e-5)
    for name, curve in curves.items():
        np.testing.assert_allclose(curve, logged_values(name), rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_step_between_two_readings_waits_for_the_gpu(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(
        Path("params.yaml"), {"dit": {"log_every": 100, "checkpoint_every": 100}, "runtime": {"device": "cuda"}}
    )
    original, calls = VelocityTask.losses, 0

    def losses(*args: Any) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        torch.cuda.set_sync_debug_mode("error" if 2 <= calls < NETWORK["steps"] else "default")
        return original(*args)

    monkeypatch.setattr(VelocityTask, "losses", losses)
    assert train.run(settings)["steps"] == calls == NETWORK["steps"]


def test_without_a_guide_only_the_record_is_written(root: Path) -> None:
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS | {"guide": None}))
    train_guide.run(settings_with())
    assert sorted(path.name for path in Path("models/guide").iterdir()) == RECORDS
    assert Path("metrics/guide").is_dir()


def test_repa_may_look_at_semantics_that_are_not_denoised(root: Path) -> None:
    alone = {"semantics": False, "delta_t": 0.0, "time_embedding": "single", "repa": "decoded"}
    train.run(settings_with(**alone))
    model, extra = load_dit(Path("models/dit"))
    assert (model.config.in_channels, model.config.semantic_channels) == (TEXTURE, 0)
    assert model.config.feature_width == WIDTH
    assert len(extra["statistics"]["mean"]) == TEXTURE
    assert "repa" in logged()


@pytest.mark.parametrize("form", ["our folder", "reference checkpoint"])
def test_training_can_start_from_given_weights(root: Path, form: str) -> None:
    train.run(settings_with())
    given = Path("models/dit").rename("given")
    network, _ = load_dit(given)
    source, statistics = "given", "init"
    if form == "reference checkpoint":
        source, statistics = "given.pt", "own"  # it has none
        torch.save({"ema": dit_to_reference(network.config, network.state_dict())}, source)
    start = {"statistics": statistics, "steps": 1, "learning_rate": 1e-9, "ema_decay": 0.0}
    train.run(settings_with(init=source, **start))
    started, _ = load_dit(Path("models/dit"))
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(started.state_dict()[name], tensor, atol=1e-7, rtol=0)
    before = contents(Path("models/dit"))
    moved = str(Path(source).rename(f"moved-{source}"))
    train.run(settings_with(init=moved, **start))
    assert contents(Path("models/dit")) == before
    source = moved
    with refusal("dit.init", moved, "depth 2", "1"):
        train.run(settings_with(init=source, depth=1, repa_depth=1))
    with refusal("dit.init", "nowhere"):
        train.run(settings_with(init="nowhere"))


def test_without_a_guide_there_is_its_record_alone_and_no_curves_of_one_before(root: Path) -> None:
    settings = settings_with(steps=2)
    train_guide.run(settings)
    without = settings.model_copy(update={"guide": None})
    for _ in range(2):
        assert "none" in train_guide.run(without)["guide"]
        assert sorted(path.name for path in (root / "models" / "guide").iterdir()) == RECORDS
        assert [path.name for path in (root / "metrics" / "guide").iterdir()] == ["metrics.json"]


def test_without_a_section_a_guide_from_elsewhere_is_left_as_it_is(root: Path) -> None:
    settings = settings_with(steps=2)
    train_guide.run(settings)
    elsewhere = settings.paths.guide.rename(root / "models" / "my-guide")
    before = sorted(path.name for path in elsewhere.iterdir())
    paths = settings.paths.model_copy(update={"guide": elsewhere})
    train_guide.run(settings.model_copy(update={"guide": None, "paths": paths}))
    assert sorted(path.name for path in elsewhere.iterdir()) == before


def test_a_mistake_leaves_the_finished_model_where_it_is(root: Path) -> None:
    train.run(settings_with())
    before = contents(Path("models"))
    write_latents(Path("data/latents"), features=False)
    for mistake, subject, named in (
        ({"repa": "stored"}, "dit.repa", "data/latents"),
        ({"init": "models/semvae"}, "dit.init", "SemanticVAE"),
    ):
        with refusal(subject, named):
            train.run(settings_with(**{"repa": "none", "seed": 1, **mistake}))
    assert contents(Path("models")) == before


def test_a_batch_that_does_not_split_is_refused_before_anything_is_moved(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train.run(settings_with())
    before = contents(Path("models"))

    def uneven(settings: LoopSettings, processes: int) -> int:
        raise SettingError("batch_size", "8", "9")

    monkeypatch.setattr(LoopSettings, "micro_batch", uneven)
    with refusal("dit.batch_size", 8, 9):
        train.run(settings_with(seed=1))
    with refusal("guide.batch_size", 8, 9):
        train_guide.run(settings_with())
    assert contents(Path("models")) == before


def test_a_group_that_processes_would_cut_is_refused_before_anything_is_moved(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train.run(settings_with())
    before = contents(Path("models"))
    monkeypatch.setattr(Processes, "join", classmethod(lambda cls: cls(count=2)))
    monkeypatch.setattr(Processes, "broadcast", lambda processes, value: value)
    with refusal("dit.dispersive_group", "8", "4 images", "divisor of 4"):
        train.run(settings_with(dispersive_weight=0.5, dispersive_group=8))
    assert contents(Path("models")) == before


def test_latents_of_another_semantic_vae_are_not_decoded_by_this_one(root: Path) -> None:
    record = read_json(Path("data/latents/settings.json"))
    write_json(Path("data/latents/settings.json"), record | {"inputs": record["inputs"] | {"semvae": "another"}})
    with refusal("data/latents", "models/semvae", "sfd encode-latents"):
        train.run(settings_with(repa="decoded"))

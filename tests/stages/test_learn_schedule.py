"""`sfd learn-schedule`: a probe, its errors, and the schedule that the transformers are then trained along."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from artifact_records import RECORDS, accept
from model_loading import load_dit
from refusals import refusal
from torch import Tensor, nn

from sfd_cli.artifacts.learned_law import LAW, with_learned_law
from sfd_cli.config import LearnSchedule, Settings, load_settings
from sfd_cli.data.near_duplicates import store_clusters
from sfd_cli.data.shards import StoreWriter
from sfd_cli.data.store import Field, Store
from sfd_cli.diffusion.latents import Streams
from sfd_cli.diffusion.objective import velocity_target
from sfd_cli.distributed.processes import Processes
from sfd_cli.files import read_json, write_json
from sfd_cli.pipeline.seeds import initial_noise
from sfd_cli.stages import learn_schedule, train
from sfd_cli.training.error_surface import choose, measure
from sfd_cli.training.probe_task import ProbeTask, strangers

COUNT, GRID, TEXTURE, SEMANTIC = 48, 2, 3, 2
TINY: dict[str, Any] = {"width": 16, "depth": 1, "heads": 2, "steps": 3, "batch_size": 8, "checkpoint_every": 2}
PARAMS: dict[str, Any] = {
    "runtime": {"device": "cpu"},
    "images": {"size": 16, "mirror": False},
    "encoder": {"name": "dinov2_vits14", "weights": "random", "image_size": 28},
    "texture_vae": {"channels": TEXTURE, "block_channels": [32, 32, 32, 32]},
    "dit": TINY | {"repa": "none", "schedule": "learned", "sample_every": 0},
    "guide": None,
    "schedule": {"learn": True, "probe": TINY | {"holdout": 0.4}, "levels": 5, "draws": 2},
}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A project with random latents, in which no image resembles another."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(PARAMS))
    fields = {"texture": Field((1, TEXTURE, GRID, GRID)), "semantic": Field((1, SEMANTIC, GRID, GRID))}
    folder, rng = Path("data/latents"), np.random.default_rng(0)
    writer = StoreWriter(folder, fields, COUNT, 16, "latents", {"image_size": 16})
    for shard in range(writer.shard_count):
        rows = len(writer.rows(shard))
        writer.write_shard(shard, {n: rng.normal(1, 3, (rows, *f.shape)).astype(np.float16) for n, f in fields.items()})
    statistics = {"mean": np.full(5, 1.0), "std": np.full(5, 3.0)}
    labels = [index % 3 for index in range(COUNT)]
    writer.finish(labels, [f"{index}.png" for index in range(COUNT)], range(COUNT), ["a", "b", "c"], statistics)
    write_json(folder / "settings.json", {"fingerprint": "latents", "complete": True, "settings": {}, "inputs": {}})
    return load_settings()


def probe_task(settings: Settings) -> ProbeTask:
    """On the stored latents."""
    store = Store(Path("data/latents"))
    return ProbeTask(store, settings.schedule.probe, torch.device("cpu"), store_clusters(store))


class Halving(nn.Module):
    """Predicts x / 2, whatever the times."""

    def forward(self, x: Tensor, t_texture: Tensor, t_semantic: Tensor, rows: Tensor, project: bool) -> Tensor:
        return x / 2


def test_errors_are_those_of_a_plain_loop_over_levels_and_draws(settings: Settings) -> None:
    section = settings.schedule
    task = probe_task(settings)
    surface, control, trained_on, energies = measure(section, task, Halving(), Processes())
    levels = torch.linspace(-4, 2.2, 5)
    torch.testing.assert_close(surface.levels, levels)
    assert {found.semantic_end for found in (surface, control, trained_on)} == {section.highest_semantic} == {0.0}
    count = len(surface.clusters)
    assert 10 <= count <= 19
    assert len(surface.clusters.unique()) == count
    store, image = task.store, 3
    row = int(surface.clusters[image])  # of a cluster of one
    stranger = int(strangers(store.labels, task.held_out, section.probe.seed)[row])
    assert stranger in task.held_out
    seen = int(trained_on.clusters[image])
    assert seen not in task.held_out
    assert len(trained_on.clusters) == count
    for found, place, other in ((surface, row, row), (control, row, stranger), (trained_on, seen, seen)):
        parts = (store.read("texture", [place], np.zeros(1, int)), store.read("semantic", [other], np.zeros(1, int)))
        data = (torch.from_numpy(np.concatenate(parts, axis=1)).float() - 1) / 3
        for i, j in ((0, 4), (3, 1)):
            texture, semantic = levels[i].sigmoid(), levels[j].sigmoid()
            times = torch.tensor([texture] * TEXTURE + [semantic] * SEMANTIC)[None, :, None, None]
            squares = []
            for seed in range(2):
                noise = initial_noise(seed, [int(store.indices[place])], (5, GRID, GRID))
                error = (times * data + (1 - times) * noise) / 2 - velocity_target(data, noise)
                squares.append(error.square().double()[0])
            mean = torch.stack(squares).mean(0)
            assert found.errors.texture[image, i, j].item() == pytest.approx(mean[:TEXTURE].sum().item(), rel=1e-6)
            assert found.errors.semantic[image, i, j].item() == pytest.approx(mean[TEXTURE:].sum().item(), rel=1e-6)
    assert energies.texture.shape == (5, 5)
    # The data has variance 1 here as the noise has: (t^2 + (1 - t)^2) / 4.
    expected = (levels.sigmoid().square() + (1 - levels.sigmoid()).square()) / 4
    torch.testing.assert_close(energies.texture[:, 0].float(), expected, rtol=0.2, atol=0)


def test_the_schedule_is_learned_once_and_the_transformer_and_its_samples_follow_it(settings: Settings) -> None:
    facts = learn_schedule.run(settings)
    assert facts["images"] > 10
    assert facts["law"] == read_json(Path("models/schedule") / LAW)
    assert read_json(Path("models/schedule") / LAW)["schedule"] in ("lead", "offset")
    with np.load("models/schedule/surface.npz") as surface:
        assert surface["texture"].shape == (facts["images"], 5, 5)
    assert Path("metrics/learn_schedule/surface.png").stat().st_size > 1000
    assert read_json(Path("metrics/learn_schedule/metrics.json"))["gap"] == facts["gap"]
    probe, about = load_dit(Path("models/probe"))
    assert (probe.config.width, about["schedule"]) == (16, {"schedule": "lead", "lead": 1.5})
    assert about["classes"][:4] == ["a", "b", "c", "a, a stranger's semantics"]
    assert (len(about["classes"]), probe.config.num_classes) == (6, 6)

    before = {path: path.read_bytes() for path in Path("models").rglob("*") if path.is_file()}
    assert learn_schedule.run(settings) == facts
    assert {path: path.read_bytes() for path in Path("models").rglob("*") if path.is_file()} == before

    law = {"schedule": "curve", "lead": 0.75, "lead_slope": -0.5}
    write_json(Path("models/schedule") / LAW, law)  # as if the criterion had found one
    accept(Path("models/schedule"))
    train.run(settings)
    assert load_dit(Path("models/dit"))[1]["schedule"] == law
    record = read_json(Path("models/dit/settings.json"))["settings"]
    assert {key: record[key] for key in law} == law
    followed = settings.sample.with_law(law)
    assert (followed.schedule, followed.lead, followed.lead_slope) == ("curve", 0.75, -0.5)


@pytest.mark.parametrize("leader", ["semantic", "texture"])
def test_a_clear_preference_is_a_lead_of_the_stream_that_the_other_needs(settings: Settings, leader: str) -> None:
    task = probe_task(settings)
    measured = measure(settings.schedule, task, Halving(), Processes())
    needed = (2.2 - measured.surface.levels).double() * 3
    texture, semantic = measured.surface.errors
    errors = (
        Streams(texture + needed, semantic) if leader == "semantic" else Streams(texture, semantic + needed[:, None])
    )
    law, found = choose(
        settings.schedule, measured._replace(surface=replace(measured.surface, errors=errors)), task.space
    )
    assert law == {"schedule": "lead", "lead": found.lead}
    assert found.lead > 0 if leader == "semantic" else found.lead < 0


def test_the_kinetic_criterion_is_told_from_the_other(settings: Settings) -> None:
    section = settings.schedule
    task = probe_task(settings)
    measured = measure(section, task, Halving(), Processes())
    plain, found = choose(section, measured, task.space)
    # x / 2 has an error of its own in either stream, the same whatever the other's level: no path is better.
    assert plain == {"schedule": "offset", "delta_t": 0.0}
    kinetic = section.model_copy(update={"criterion": "kinetic", "kinetic_weight": 1e3})
    law, same = choose(kinetic, measured, task.space)
    assert same == found
    assert law["schedule"] == "curve"
    assert abs(law["lead"]) < 0.3


def test_what_the_kinetic_criterion_chose_is_recorded_beside_what_the_other_one_says(settings: Settings) -> None:
    section = settings.schedule.model_copy(update={"criterion": "kinetic"})
    facts = learn_schedule.run(settings.model_copy(update={"schedule": section}))
    assert facts["law"] == read_json(Path("models/schedule") / LAW)
    assert {"lead", "gap", "related_gap"} <= set(facts)


def test_without_a_learned_schedule_there_is_only_the_record_of_that(settings: Settings) -> None:
    plain = settings.model_copy(update={"schedule": LearnSchedule()})
    assert "not learned" in learn_schedule.run(plain)["schedule"]
    for folder in (Path("models/probe"), Path("models/schedule")):
        assert sorted(path.name for path in folder.iterdir()) == RECORDS
    for folder in (Path("metrics/probe"), Path("metrics/learn_schedule")):
        assert read_json(folder / "metrics.json") == {}
    with refusal(Path("models/schedule"), "sfd learn-schedule"):
        with_learned_law(settings.dit, Path("models/schedule"))


def test_training_before_learning_is_refused_with_the_command(settings: Settings) -> None:
    with refusal(Path("models/schedule"), "sfd learn-schedule"):
        train.run(settings)
    assert not Path("models/dit").exists()


@pytest.mark.parametrize(
    "law", [[], {"schedule": "led"}, {"schedule": "curve", "lead": "far"}, {"schedule": "learned"}]
)
def test_a_file_that_tells_of_no_law_is_refused(settings: Settings, law: Any) -> None:
    learn_schedule.run(settings)
    write_json(Path("models/schedule") / LAW, law)
    accept(Path("models/schedule"))
    with refusal(Path("models/schedule") / LAW):
        train.run(settings)


def test_too_few_held_out_images_are_refused_by_their_key(settings: Settings) -> None:
    probe = settings.schedule.probe.model_copy(update={"holdout": 0.05})
    few = settings.model_copy(update={"schedule": LearnSchedule(learn=True, probe=probe, levels=3, draws=1)})
    with refusal("schedule.probe.holdout", "2 clusters"):
        learn_schedule.run(few)


def test_a_killed_probe_goes_on_to_the_same_schedule(settings: Settings) -> None:
    whole = learn_schedule.run(settings)
    shutil.rmtree("models")
    shorter = settings.schedule.model_copy(update={"probe": settings.schedule.probe.model_copy(update={"steps": 2})})
    learn_schedule.run(settings.model_copy(update={"schedule": shorter}))
    assert learn_schedule.run(settings) == whole

"""Going on from a trained transformer with other classes or another grid: what is inherited, and what is made anew."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import done, refusal_of, sfd
from model_loading import load_dit
from reference_files import part
from refusals import refusal, require_refusal
from torch import Tensor, nn
from training_project import CLASSES, GRID, SEMANTIC, TEXTURE, contents, project, settings_with, write_latents

from sfd_cli.config import DiT, Settings, identity, load_settings
from sfd_cli.data.order import EpochSampler
from sfd_cli.errors import SettingError
from sfd_cli.files import read_json
from sfd_cli.formats.files import export_model
from sfd_cli.formats.model_folder import dit_weights, save_model
from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig, sincos_positions
from sfd_cli.stages import train, train_guide
from sfd_cli.training import transformer
from sfd_cli.training.inherit import settled
from sfd_cli.training.settings import LoopSettings
from sfd_cli.training.velocity_task import VelocityTask
from sfd_cli.weights.models import open_model, space_of

OTHERS = ["hexagons", "squares"]
"""Classes of the new images, of which the source knows the second."""
STATISTICS = {"mean": [0.5, -0.25, 0.125, 0.75, -1.0], "std": [2.0, 0.5, 4.0, 1.5, 0.75]}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with latents of two other classes, and at `source` a transformer none of whose weights is zero."""
    project(tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    shutil.rmtree("data/latents")
    write_latents(Path("data/latents"), classes=OTHERS)
    write_source(Path("source"))
    return tmp_path / "project"


def write_source(folder: Path, facts: dict[str, Any] | None = None, **config: Any) -> LightningDiT:
    values: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2, "repa_depth": 2, "repa_width": 8, "feature_width": 6}
    values |= {"grid": GRID, "in_channels": TEXTURE + SEMANTIC, "num_classes": 3, "semantic_channels": SEMANTIC}
    torch.manual_seed(5)
    network = LightningDiT(LightningDiTConfig(**(values | config)))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    facts = {"statistics": STATISTICS, "classes": CLASSES, "image_size": 16} if facts is None else facts
    save_model(folder, "LightningDiT", network.config, dit_weights(network, "ema"), facts)
    return network.eval()


@dataclass
class Start:
    """What training would begin with."""

    task: VelocityTask
    network: LightningDiT
    loop: LoopSettings


class _Begun(Exception):
    pass


def start(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> Start:
    found: list[Start] = []

    def begin(task: VelocityTask, model: LightningDiT, sampler: EpochSampler, loop: LoopSettings, *_: Any, **__: Any):
        found.append(Start(task, model, loop))
        raise _Begun

    with monkeypatch.context() as patch:
        patch.setattr(transformer, "fit", begin)
        with pytest.raises(_Begun):
            train.run(settings)
    return found[0]


def velocity(network: LightningDiT, row: int | Tensor) -> Tensor:
    """Of fixed noise at fixed times under a row of the label table, or a vector in its place, (4, C, h, w)."""
    generator, config = torch.Generator().manual_seed(3), network.config
    x = torch.randn(4, config.in_channels, config.grid, config.grid, generator=generator)
    times, rows = torch.tensor([0.1, 0.4, 0.7, 0.95]), torch.zeros(4, dtype=torch.int64)
    held = network.class_embedding.weight.detach().clone()
    with torch.no_grad():
        if isinstance(row, Tensor):
            network.class_embedding.weight[0] = row
        else:
            rows += row
        found = network(x, times, times.square(), rows)
        network.class_embedding.weight.copy_(held)
    return found


def same(found: Tensor, expected: Tensor) -> None:
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_at_step_0_every_class_moves_as_the_old_one_that_it_begins_with(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = load_dit(Path("source"))[0]
    table = source.class_embedding.weight
    begun = start(monkeypatch, settings_with(init="source"))
    hexagons, squares, null = (velocity(begun.network, row) for row in range(3))
    same(squares, velocity(source, 1))
    same(null, velocity(source, 3))
    same(hexagons, velocity(source, 3))
    assert (squares - null).abs().max() > 1e-3
    old: dict[str, Any] = {"hexagons": ["triangles"], "squares": [2, "circles"]}
    begun = start(monkeypatch, settings_with(init="source", init_classes=old))
    same(velocity(begun.network, 0), velocity(source, 2))
    same(velocity(begun.network, 1), velocity(source, (table[2] + table[0]) / 2))
    assert begun.network.class_embedding.weight.shape == (3, 16)


def test_the_reference_checkpoint_goes_on_with_another_number_of_classes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Velocities are those that the reference implementation computed, of 10 classes, and the new classes are 4."""
    torch.save({"ema": part("dit_sfd", "model.")}, "4000000.pt")
    for name, channels in (("texture.pt", 8), ("semantic.pt", 4)):
        shape = (1, channels, 1, 1)
        torch.save({"mean": torch.full(shape, 0.5), "std": torch.full(shape, float(channels))}, name)
    shutil.rmtree("data/latents")
    given = part("dit_sfd", "forward.")
    classes = ["0", "first", "second", "third"]
    write_latents(Path("data/latents"), classes=classes, grid=4, channels=(8, 4), width=384)
    names = zip(classes[1:], given["y"].tolist(), strict=True)
    dit = {"init": "4000000.pt", "init_classes": {name: [row] for name, row in names}}
    dit |= {"width": 64, "depth": 3, "heads": 4, "repa_depth": 2, "repa_width": 48, "delta_t": 0.3}
    foreign = {"texture_statistics": "texture.pt", "semantic_statistics": "semantic.pt"}
    shapes: dict[str, Any] = {"images": {"size": 32}, "encoder": {"image_size": 56}, "texture_vae": {"channels": 8}}
    begun = start(monkeypatch, load_settings(Path("params.yaml"), {"dit": dit, "foreign": foreign, **shapes}))
    with torch.no_grad():
        rows = torch.arange(1, 4)
        found = begun.network.eval()(given["x"], given["t_texture"], given["t_semantic"], rows, project=True)
    torch.testing.assert_close(found.velocity, given["velocity"], atol=1e-6, rtol=0)
    torch.testing.assert_close(found.projection, given["repa_projection"], atol=1e-5, rtol=0)
    assert begun.task.space.mean == (0.5,) * 12
    assert begun.task.space.std == (8.0,) * 8 + (4.0,) * 4
    # The class called 0 is not the reference's first, whose classes have no names.
    table = part("dit_sfd", "model.")["y_embedder.embedding_table.weight"]
    assert torch.equal(begun.network.class_embedding.weight[[0, 4]], table[[10, 10]])


def test_without_names_as_many_classes_keep_their_rows(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"statistics": STATISTICS}
    source = write_source(Path("nameless"), facts, num_classes=2)
    begun = start(monkeypatch, settings_with(init="nameless"))
    assert torch.equal(begun.network.class_embedding.weight, source.class_embedding.weight)


def test_another_grid_has_positions_of_its_own_and_all_weights(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree("data/latents")
    write_latents(Path("data/latents"), classes=OTHERS, grid=4)
    larger: dict[str, Any] = {"images": {"size": 32}, "encoder": {"image_size": 56}}
    settings = load_settings(Path("params.yaml"), {"dit": {"init": "source"}, **larger})
    network, source = start(monkeypatch, settings).network, load_dit(Path("source"))[0]
    assert torch.equal(network.position, sincos_positions(16, 4))
    ours, theirs = network.state_dict(), source.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name != "class_embedding.weight")
    assert velocity(network, 0).isfinite().all()


def test_positions_of_an_imported_checkpoint_are_kept_and_travel_on(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Averaging made the published ones drift (`dit_tables_from_reference`)."""
    source = load_dit(Path("source"))[0]
    source.position += 1e-3 * torch.randn(source.position.shape, generator=torch.Generator().manual_seed(0))
    facts = {"statistics": STATISTICS, "classes": CLASSES}
    save_model(Path("drifted"), "LightningDiT", source.config, dit_weights(source, "ema"), facts)
    same(velocity(start(monkeypatch, settings_with(init="drifted")).network, 1), velocity(source, 1))
    train.run(settings_with(init="drifted", keep_every=3))
    for folder in ("models/dit", "models/dit/milestones/0000003"):
        assert torch.equal(load_dit(Path(folder))[0].position, source.position)


def test_a_projector_of_another_shape_or_block_is_drawn_anew(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = load_dit(Path("source"))[0].state_dict()
    for change in ({"repa_width": 12}, {"repa_depth": 1}):
        found = start(monkeypatch, settings_with(init="source", **change)).network.state_dict()
        torch.manual_seed(0)
        fresh = start(monkeypatch, settings_with(**change)).network.state_dict()
        for name in fresh:
            if name.startswith("projector."):
                assert torch.equal(found[name], fresh[name])
            elif name != "class_embedding.weight":
                assert torch.equal(found[name], source[name])
    without = start(monkeypatch, settings_with(init="source", repa="none")).network
    assert not any(name.startswith("projector.") for name in without.state_dict())
    write_source(Path("plain"), repa_depth=0, feature_width=0)
    assert "projector.0.weight" in start(monkeypatch, settings_with(init="plain")).network.state_dict()


def test_latents_are_normalised_as_the_source_s_were_and_the_folder_says_so(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"mean": [1.0] * 5, "std": [3.0] * 5}
    for statistics, expected in ((None, STATISTICS), ("init", STATISTICS), ("own", own)):
        given = {} if statistics is None else {"statistics": statistics}
        assert start(monkeypatch, settings_with(init="source", **given)).task.space.statistics == expected
        train.run(settings_with(init="source", **given))
        model = open_model("models/dit", LightningDiT)
        assert model.facts["statistics"] == expected
        assert model.facts["classes"] == OTHERS
        assert space_of(model).statistics == expected
        assert read_json(Path("models/dit/settings.json"))["settings"]["statistics"] == (statistics or "init")
        assert read_json(Path("models/dit/config.json"))["config"]["num_classes"] == 2
        shutil.rmtree("models/dit")


def test_the_loss_of_the_first_step_is_that_of_the_source_on_latents_of_its_own_scale(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: (latent - mean) / std of the source, and its velocity; the statistics of the new images give another."""
    begun = start(monkeypatch, settings_with(init="source", repa="none", label_dropout=0.0))
    source = load_dit(Path("source"))[0]
    task, indices = begun.task, torch.arange(4).numpy()
    batch = task.fetch(indices, indices * 0)
    batch["labels"] = torch.ones(4, dtype=torch.int64)
    draws = task.draw(torch.Generator().manual_seed(1), 4)
    raw = torch.cat((batch["texture"], batch["semantic"]), dim=1).float()
    mean, std = (torch.tensor(STATISTICS[key])[None, :, None, None] for key in ("mean", "std"))
    data, noise = (raw - mean) / std, draws["noise"]
    times, _ = task._times.of(draws)
    spread = torch.cat((times.texture[:, None].expand(-1, TEXTURE), times.semantic[:, None].expand(-1, SEMANTIC)), 1)
    noisy = spread[..., None, None] * data + (1 - spread[..., None, None]) * noise
    with torch.no_grad():
        expected = (source(noisy, *times, batch["labels"]) - (data - noise)).square()
        weights = torch.tensor([1.0] * TEXTURE + [2.0] * SEMANTIC)[None, :, None, None]
        found = task.losses(begun.network, batch, draws)["mse"]
        own = start(monkeypatch, settings_with(init="source", repa="none", statistics="own"))
        other = own.task.losses(own.network, batch, draws)["mse"]
    assert found.item() == pytest.approx((expected * weights).mean().item(), rel=1e-5)
    assert abs(other - found) > 0.05 * found


def test_what_is_inherited_may_have_a_learning_rate_of_its_own(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AdamW's first step is the learning rate, whatever the gradient, where that is not tiny."""
    given: dict[str, Any] = {"init": "source", "repa_width": 12, "learning_rate": 1e-3}
    begun = start(monkeypatch, settings_with(**given, init_learning_rate_scale=0.125))
    before = {name: tensor.clone() for name, tensor in begun.network.state_dict().items()}
    train.run(settings_with(**given, init_learning_rate_scale=0.125, steps=1, ema_decay=0.0))
    after = load_dit(Path("models/dit"))[0].state_dict()
    for name in before:
        is_new = name == "class_embedding.weight" or name.startswith("projector.")
        moved = (after[name] - before[name]).abs().max().item()
        assert moved == pytest.approx(1e-3 if is_new else 1.25e-4, rel=0.02), name
    assert set(begun.loop.rate_scales.values()) == {0.125}
    assert start(monkeypatch, settings_with(**given)).loop.rate_scales == {}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_killed_run_goes_on_to_the_same_bytes(root: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str) -> None:
    given: dict[str, Any] = {"init": "source", "init_learning_rate_scale": 0.1, "repa_width": 12, "steps": 10}
    given |= {"optimizer": optimizer, "init_classes": {"hexagons": [0, 2]}, "keep_every": 5, "holdout": 0.2}
    train.run(settings_with(**given))
    whole = contents(Path("models/dit"))
    Path("models").rename("whole")
    shutil.copytree("whole/semvae", "models/semvae")
    losses, calls = VelocityTask.losses, 0

    def killed(task: VelocityTask, *args: Any) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        if calls in (6, 10):
            raise KeyboardInterrupt
        return losses(task, *args)

    with monkeypatch.context() as patch:
        patch.setattr(VelocityTask, "losses", killed)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                train.run(settings_with(**given))
    assert calls == 10
    train.run(settings_with(**given))
    assert contents(Path("models/dit")) == whole


def test_what_was_fine_tuned_is_exported_with_the_statistics_it_was_trained_with(root: Path) -> None:
    train.run(settings_with(init="source"))
    export_model(Path("models/dit"), Path("out.pt"))
    for file, part_of in (("out_latents_stats.pt", slice(TEXTURE)), ("out_latents_sv_stats.pt", slice(TEXTURE, None))):
        found = torch.load(file)
        assert found["mean"].flatten().tolist() == STATISTICS["mean"][part_of]
        assert found["std"].flatten().tolist() == STATISTICS["std"][part_of]
    assert len(torch.load("out.pt")["ema"]["y_embedder.embedding_table.weight"]) == 3


def test_a_training_without_a_start_is_called_as_before(root: Path) -> None:
    section = settled(settings_with().dit)
    assert not {"init_classes", "statistics", "init_learning_rate_scale"} & identity(section).keys()
    assert identity(settled(settings_with(statistics="own").dit)) == identity(section)


def test_a_guide_of_another_scale_is_refused_before_it_is_trained(root: Path) -> None:
    guided = {"sample": {"guidance": "autoguidance"}}
    write_source(Path("small"), width=8, depth=1, repa_depth=0, feature_width=0)
    for dit, guide in (({"init": "source"}, {}), ({}, {"init": "small"})):
        settings = load_settings(Path("params.yaml"), {"dit": dit, "guide": guide, **guided})
        with refusal("guide.statistics", "dit", "guide", "guide: null"):
            train_guide.run(settings)
    assert not Path("models/guide").exists()
    both = {"dit": {"init": "source"}, "guide": {"init": "small"}}
    train_guide.run(load_settings(Path("params.yaml"), both | guided))
    assert open_model("models/guide", LightningDiT).facts["statistics"] == STATISTICS


def test_old_classes_are_a_flag_too(root: Path) -> None:
    done("train", "--init", "source", "--init-classes", "{hexagons: [2, circles]}", "--steps", "1")
    said = read_json(Path("models/dit/settings.json"))["settings"]
    assert said["init_classes"] == {"hexagons": [2, "circles"]}
    for text in ("cat", "[281]", "{cat"):
        assert sfd("train", "--init", "source", "--init-classes", text).code == 2
    refused = refusal_of("train", "--init", "source", "--init-classes", "{octagons: [0]}")
    require_refusal(refused, "dit.init_classes", "octagons", "hexagons")


def test_where_training_starts_is_said(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_source(Path("source"), {"statistics": STATISTICS, "classes": CLASSES, "texture_vae": "t"})
    train.run(settings_with(init="source", steps=1))
    said = capsys.readouterr().err
    assert "dit starts from source, normalised by its statistics; 1 of 2 classes begin as old ones" in said
    assert "another texture VAE" not in said
    write_source(Path("source"), {"statistics": STATISTICS, "classes": CLASSES, "texture_vae": "another"})
    train.run(settings_with(init="source", steps=1, statistics="own"))
    said = capsys.readouterr().err
    assert "normalised by the statistics of the images" in said
    assert "another texture VAE" in said


BAD: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "an old class by a name that the source does not have": (
        {"init_classes": {"hexagons": ["circle"]}},
        "dit.init_classes",
        ("source", "'circle'", "hexagons", "'circles'"),
    ),
    "an old class by a number that the source does not have": (
        {"init_classes": {"hexagons": [3]}},
        "dit.init_classes",
        ("source", "3", "hexagons"),
    ),
    "a negative number": ({"init_classes": {"hexagons": [-1]}}, "dit.init_classes", ("-1",)),
    "a new class that there are no images of": (
        {"init_classes": {"octagons": [0]}},
        "dit.init_classes",
        ("'octagons'", "'hexagons'"),
    ),
    "another width": ({"width": 32}, "dit.init", ("source", "width 16 instead of 32")),
    "another depth": ({"depth": 3}, "dit.init", ("depth 2 instead of 3",)),
    "one time": (
        {"time_embedding": "single", "delta_t": 0.0},
        "dit.init",
        ("time_embedding dual instead of single",),
    ),
    "another prediction": ({"prediction": "data"}, "dit.init", ("prediction velocity instead of data",)),
    "other channels": (
        {"semantics": False, "delta_t": 0.0, "time_embedding": "single"},
        "dit.init",
        (f"{TEXTURE} texture and {SEMANTIC} semantic", f"{TEXTURE} and 0"),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_a_sentence_before_anything_is_moved(root: Path, case: str) -> None:
    train.run(settings_with(steps=1))
    before = contents(Path("models"))
    dit, subject, named = BAD[case]
    with refusal(subject, *named):
        train.run(settings_with(init="source", **dit))
    assert contents(Path("models")) == before


def test_a_grid_that_patches_do_not_divide_is_refused(root: Path) -> None:
    write_source(Path("patches"), patch_size=2, repa_depth=0, feature_width=0)
    shutil.rmtree("data/latents")
    write_latents(Path("data/latents"), classes=OTHERS, grid=3)
    with refusal("dit.patch_size", "3"):
        train.run(settings_with(init="patches", patch_size=2, repa="none"))


def test_statistics_that_are_not_there_are_not_inherited(root: Path) -> None:
    write_source(Path("bare"), {"classes": CLASSES})
    with refusal("dit.statistics", "bare", "foreign.texture_statistics", "dit.statistics: own"):
        train.run(settings_with(init="bare"))
    train.run(settings_with(init="bare", statistics="own", steps=1))
    with refusal("dit.init_classes", "bare", "'cat'"):
        write_source(Path("bare"), {"statistics": STATISTICS})
        train.run(settings_with(init="bare", init_classes={"squares": ["cat"]}))


@pytest.mark.parametrize(
    ("key", "value"),
    [("init_classes", {"a": [1]}), ("statistics", "init"), ("init_learning_rate_scale", 0.5)],
)
def test_settings_about_a_start_need_one(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=key) as refused:
        DiT(**{key: value})
    assert isinstance(refused.value.errors()[0]["ctx"]["error"], SettingError)  # type: ignore[attr-defined]


@pytest.mark.parametrize("value", [{"a": []}, {"a": [True]}, {"a": 1}, {"a": [1.5]}, {"a": [None]}])
def test_old_classes_are_lists_of_numbers_and_names(value: Any) -> None:
    with refusal("dit.init_classes"):
        load_settings(overrides={"dit": {"init": "x", "init_classes": value}})


def test_an_adapter_is_trained_beside_a_label_table_for_other_classes(root: Path) -> None:
    settings = settings_with(init="source", adapter={"rank": 2}, init_classes={"hexagons": ["circles"]}, steps=3)
    train.run(settings)
    source = load_dit(Path("source"))[0]
    (finished, about), (alone, facts) = load_dit(Path("models/dit")), load_dit(Path("models/dit/adapter"))
    assert about["statistics"] == facts["statistics"] == STATISTICS
    assert about["classes"] == facts["classes"] == OTHERS
    assert all(torch.equal(tensor, alone.state_dict()[name]) for name, tensor in finished.state_dict().items())
    table = finished.class_embedding.weight
    assert table.shape == (3, 16)
    began = source.class_embedding.weight[[0, 1, 3]]
    assert 0 < (table - began).abs().max() < 0.1
    assert torch.equal(finished.patch_embedding.weight, source.patch_embedding.weight)
    assert not torch.equal(finished.blocks[0].attention.qkv.weight, source.blocks[0].attention.qkv.weight)

"""What a pipeline is said to take, against what the demo took and what networks really keep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from training_project import project, settings_with

from sfd_cli.config import DiT, Settings, load_settings
from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig
from sfd_cli.stages import train
from sfd_cli.training.costs import Cost, Costs, step_memory
from sfd_cli.training.transformer import flops_per_image

REPOSITORY = Path(__file__).parents[2]
PRESETS = REPOSITORY / "sfd_cli" / "presets"
LOCK = yaml.safe_load((REPOSITORY / "dvc.lock").read_text())["stages"]
CONFIG = LightningDiTConfig(4, 6, 3, 2, width=48, depth=3, heads=3)


def sizes(stage: str) -> dict[str, Any]:
    """Bytes and files of what a stage of the committed demo left among data and models."""
    return next(out for out in LOCK[stage]["outs"] if out["path"].startswith(("data/", "models/")))


@pytest.fixture(scope="module")
def demo() -> dict[str, Cost]:
    """Of the settings that the committed demo was made with, by stage."""
    given: dict[str, Any] = {}
    for stage in LOCK.values():
        given |= {key: value for key, value in stage.get("params", {}).get("params.yaml", {}).items() if "." not in key}
    images = sizes("prepare-data")  # beside them lie a manifest and a record
    return Costs(Settings.model_validate(given), images["nfiles"] - 2, 9, images["size"]).stages()


@pytest.mark.parametrize("stage", [stage for stage in LOCK if stage not in ("fid", "report", "learn-schedule")])
def test_bytes_are_within_five_percent_of_the_demos_own(demo: dict[str, Cost], stage: str) -> None:
    assert demo[stage].bytes == pytest.approx(sizes(stage)["size"], rel=0.05)


def test_a_checkpoint_takes_what_is_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project(tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    plain = {"width": 64, "repa": "none", "semantics": False, "delta_t": 0.0, "time_embedding": "single"}
    for optimizer in ("adamw", "muon"):
        settings = settings_with(**plain, optimizer=optimizer)
        train.run(settings)
        folder = max(Path("models/.checkpoints/dit").glob("*/step-*"), key=lambda path: path.stat().st_mtime_ns)
        held = sum(path.stat().st_size for path in folder.iterdir())
        assert Costs(settings, 20, 3, 0).stages()["train"].checkpoint == pytest.approx(held, rel=0.05), optimizer


def test_every_stage_that_makes_something_is_planned(demo: dict[str, Cost]) -> None:
    assert set(demo) == set(LOCK) - {"report", "learn-schedule"}
    assert all(cost.operations > 0 for name, cost in demo.items() if name != "prepare-data")


def test_imagenet_xl_takes_what_the_design_says() -> None:
    settings = load_settings(PRESETS / "imagenet256-xl.yaml")
    costs = Costs(settings, 1_281_167, 1000, 0)
    stages = costs.stages()
    assert stages["encode-latents"].bytes == 1_281_167 * 2 * 48 * 16 * 16 * 2
    config = costs.transformer(settings.dit)
    plain = 102_400_000 * flops_per_image(config)
    assert plain < stages["train"].operations < 1.05 * plain, "REPA's decoded target comes on top"
    assert 100e9 < sum(cost.bytes for cost in stages.values()) < 200e9


def test_without_semantics_there_is_neither_encoder_nor_semantic_vae() -> None:
    settings = load_settings(PRESETS / "dit-xl2.yaml")
    assert not {"extract-features", "train-semvae"} & set(Costs(settings, 1000, 10, 0).stages())


def test_memory_is_weights_and_state_and_what_the_network_keeps() -> None:
    kept: dict[int, torch.UntypedStorage] = {}
    network = LightningDiT(CONFIG)
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    batch = 64
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        times, labels = torch.rand(batch), torch.zeros(batch, dtype=torch.int64)
        held = network(torch.randn(batch, 6, 4, 4), times, times, labels)
    measured = sum(storage.nbytes() for storage in kept.values())
    del held
    state = 20 * sum(value.numel() for value in network.state_dict().values())
    assert step_memory(CONFIG, DiT(), batch, bf16=False) - state == pytest.approx(measured, rel=0.05)


def test_memory_grows_with_images_and_falls_with_bf16_and_recomputation() -> None:
    fixed, one, two = (step_memory(CONFIG, DiT(), images, bf16=False) for images in (0, 1, 2))
    assert two - one == pytest.approx(one - fixed)
    assert step_memory(CONFIG, DiT(), 2, bf16=True) - fixed == pytest.approx((two - fixed) / 2)
    deep = replace(CONFIG, depth=12)
    recomputed = step_memory(deep, DiT(checkpoint_activations=True), 8, bf16=False)
    state = step_memory(deep, DiT(), 0, bf16=False)
    assert recomputed - state < 0.4 * (step_memory(deep, DiT(), 8, bf16=False) - state)

"""Every number of params.yaml arrives where it belongs: the architecture, the optimiser or the objective."""

from __future__ import annotations

import math
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
import torch

from sfd_cli.config import DiT, SemVAE, TextureVAE, identity
from sfd_cli.diffusion.latents import LatentSpace
from sfd_cli.errors import SettingError
from sfd_cli.networks.lightning_dit import LightningDiTConfig
from sfd_cli.training.settings import LoopSettings, learning_rate, transformer_loop, vae_loop, with_precision
from sfd_cli.training.transformer import network_config

CPU = torch.device("cpu")
# None of it is the default.
UNUSUAL: dict[str, Any] = {
    "width": 96,
    "depth": 5,
    "heads": 6,
    "patch_size": 2,
    "mlp_ratio": 3.0,
    "qk_norm": False,
    "swiglu": False,
    "rope": False,
    "rms_norm": False,
    "time_embedding": "single",
    "prediction": "data",
    "delta_t": 0.0,
    "repa": "none",
    "repa_width": 24,
    "steps": 7,
    "batch_size": 12,
    "accumulate": 3,
    "optimizer": "muon",
    "muon_learning_rate": 0.375,
    "learning_rate": 0.5,
    "beta2": 0.75,
    "weight_decay": 0.25,
    "warmup_steps": 2,
    "decay": 0.375,
    "clip_norm": 0.125,
    "ema_decay": 0.0625,
    "ema_warmup": True,
    "precision": "bf16",
    "compile": True,
    "checkpoint_every": 11,
    "log_every": 13,
    "seed": 17,
}
SPACE = LatentSpace(texture=3, semantic=2, grid=4)


def test_the_network_is_the_one_that_the_settings_and_the_latents_ask_for() -> None:
    found = asdict(network_config(DiT(**UNUSUAL), SPACE, feature_width=9, num_classes=8))
    own = {"grid": 4, "in_channels": 5, "semantic_channels": 2, "num_classes": 8, "repa_depth": 0, "feature_width": 0}
    assert found == own | {name: UNUSUAL[name] for name in found if name not in own}


def test_a_network_with_repa_has_its_projector() -> None:
    found = network_config(DiT(width=32, heads=2, depth=5, repa_depth=3, repa_width=7), SPACE, 9, 8)
    assert (found.repa_depth, found.repa_width, found.feature_width) == (3, 7, 9)


def test_the_transformer_is_optimised_as_its_section_says() -> None:
    found = asdict(transformer_loop(DiT(**UNUSUAL), CPU))
    assert found.pop("rate_scales") == {}, "these follow from the weights to start from"
    assert found.pop("granule") is None, "where a number of micro-batches is given it is that"
    assert found == {name: UNUSUAL[name] for name in found}


def test_every_setting_of_a_transformer_has_one_use() -> None:
    """A key that is added to the section must be added to a mapping or to this list."""
    network, loop = ({field.name for field in fields(kind)} for kind in (LightningDiTConfig, LoopSettings))
    objective = {"schedule", "semantics", "delta_t", "semantic_weight", "cosine_weight", "label_dropout"}
    objective |= {"repa", "repa_mode", "repa_weight", "time_mean"}
    objective |= {"lead", "lead_slope", "knots", "objective", "lead_jitter", "leader_noise"}
    objective |= {"dispersive_weight", "dispersive_depth", "dispersive_temperature", "dispersive_group"}
    run = {
        "init",
        "init_classes",
        "statistics",
        "init_learning_rate_scale",
        "adapter",
        "checkpoint_activations",
        "sample_every",
        "keep_every",
        "holdout",
    }
    assert set(DiT.model_fields) == (network | loop | objective | run) & set(DiT.model_fields)
    assert not (network & loop) | (objective & (network | loop))


def test_a_vae_decays_to_zero_with_clipped_gradients() -> None:
    numbers = {name: UNUSUAL[name] for name in ("steps", "batch_size", "learning_rate", "warmup_steps", "seed")}
    often: dict[str, Any] = {"checkpoint_every": 11, "log_every": 13}
    found = vae_loop(SemVAE(**numbers, **often), CPU)
    assert found == LoopSettings(**numbers, **often, granule=1, decay="cosine", clip_norm=1.0, precision="fp32")
    assert vae_loop(SemVAE(precision="bf16"), CPU).precision == "bf16"
    assert vae_loop(SemVAE(precision="auto"), CPU).precision == "fp32"
    assert vae_loop(SemVAE(precision="auto"), torch.device("cuda")).precision == "bf16"


def test_on_a_gpu_the_transformer_and_the_semantic_vae_train_in_bf16_and_compiled() -> None:
    """The texture VAE, of which no preset trains a large one, stays as it was."""
    cuda, steps = torch.device("cuda"), 1000
    loops = [transformer_loop(DiT(steps=steps), cuda), vae_loop(SemVAE(steps=steps), cuda)]
    assert [(loop.precision, loop.compile) for loop in loops] == [("bf16", True)] * 2
    loops = [transformer_loop(DiT(steps=steps), CPU), vae_loop(SemVAE(steps=steps), CPU)]
    loops += [vae_loop(TextureVAE(steps=steps), device) for device in (CPU, cuda)]
    assert [(loop.precision, loop.compile) for loop in loops] == [("fp32", False)] * 4


def test_the_semantic_vaes_identity_tells_bf16_and_is_that_of_before_in_fp32() -> None:
    cuda = torch.device("cuda")
    for section in (with_precision(SemVAE(), CPU), with_precision(SemVAE(precision="fp32"), cuda)):
        assert not {"precision", "compile"} & identity(section).keys()
    assert identity(with_precision(SemVAE(), cuda))["precision"] == "bf16"
    assert identity(with_precision(SemVAE(precision="native"), CPU))["precision"] == "native"
    assert identity(TextureVAE(precision="auto"))["precision"] == "auto"
    assert "precision" not in identity(TextureVAE())


@pytest.mark.parametrize(("processes", "accumulate", "size"), [(1, 1, 12), (2, 3, 2), (4, 1, 3)])
def test_a_batch_is_shared_evenly(processes: int, accumulate: int, size: int) -> None:
    section = DiT(batch_size=12, accumulate=accumulate)
    assert transformer_loop(section, CPU).micro_batch(processes) == size


def test_a_batch_that_does_not_split_evenly_is_refused_with_what_would() -> None:
    with pytest.raises(SettingError) as refused:
        transformer_loop(DiT(batch_size=12, accumulate=2), CPU).micro_batch(4)
    assert refused.value.subject == "batch_size"
    assert "8" in refused.value.remedy


PLAIN = LoopSettings(steps=12, batch_size=24, learning_rate=2.0, checkpoint_every=5, log_every=3, seed=7)


def test_what_is_left_out_is_adamw_without_decay_average_or_clipping() -> None:
    own = {"steps": 12, "batch_size": 24, "learning_rate": 2.0, "checkpoint_every": 5, "log_every": 3, "seed": 7}
    assert asdict(PLAIN) == own | {
        "accumulate": 1,
        "granule": None,
        "optimizer": "adamw",
        "muon_learning_rate": 0.02,
        "beta2": 0.999,
        "weight_decay": 0.0,
        "warmup_steps": 0,
        "decay": 0.0,
        "clip_norm": None,
        "ema_decay": None,
        "ema_warmup": False,
        "precision": "fp32",
        "compile": False,
        "rate_scales": {},
    }


def test_muon_is_refused_where_pytorch_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(SettingError) as refused:
        transformer_loop(DiT(optimizer="muon"), CPU)
    assert refused.value.subject == "optimizer"
    assert "2.9" in refused.value.problem
    assert "adamw" in refused.value.remedy
    assert transformer_loop(DiT(), CPU).optimizer == "adamw"


def test_the_learning_rate_warms_up_in_equal_steps_and_stays() -> None:
    rates = [learning_rate(replace(PLAIN, warmup_steps=4), step) for step in range(12)]
    assert rates == pytest.approx([0.5, 1.0, 1.5, 2.0, *[2.0] * 8])
    assert [learning_rate(PLAIN, step) for step in (0, 11)] == [2.0, 2.0]


def test_the_learning_rate_falls_in_equal_steps_at_the_end_and_would_end_at_zero() -> None:
    quarter = replace(PLAIN, decay=0.25)
    assert [learning_rate(quarter, step) for step in range(13)] == pytest.approx([2.0] * 10 + [4 / 3, 2 / 3, 0.0])
    # Between two steps it begins where it should: the last 4.8 of 12.
    odd = [learning_rate(replace(PLAIN, decay=0.4), step) for step in range(12)]
    assert odd == pytest.approx([2.0] * 8 + [2 * left / 4.8 for left in (4, 3, 2, 1)])
    both = replace(PLAIN, decay=0.75, warmup_steps=6)
    assert learning_rate(both, 4) == pytest.approx(2.0 * 5 / 6 * 8 / 9)


@pytest.mark.parametrize("warmup", [0, 4, 11, 12])
def test_half_a_cosine_follows_the_warmup_and_would_end_at_zero(warmup: int) -> None:
    settings = replace(PLAIN, warmup_steps=warmup, decay="cosine")
    for step in range(12):
        risen = min((step + 1) / warmup, 1.0) if warmup else 1.0
        fallen = 0.5 + 0.5 * math.cos(math.pi * max(step - warmup, 0) / max(12 - warmup, 1))
        assert learning_rate(settings, step) == pytest.approx(2.0 * risen * fallen)
    assert learning_rate(settings, max(12, warmup + 1)) == pytest.approx(0.0, abs=1e-12)


def test_a_micro_batch_is_the_batch_over_processes_and_accumulation() -> None:
    assert [repr(PLAIN.micro_batch(processes)) for processes in (1, 2, 3)] == ["24", "12", "8"], "whole numbers"
    assert replace(PLAIN, accumulate=4).micro_batch(3) == 2
    with pytest.raises(SettingError) as refused:
        replace(PLAIN, accumulate=5).micro_batch(2)
    assert refused.value.subject == "batch_size"
    assert all(number in refused.value.problem for number in ("24", "2", "5"))
    assert "10" in refused.value.remedy

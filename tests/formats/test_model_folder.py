import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_loading import load_dit, load_semantic_vae, load_texture_vae
from refusals import refusal
from torch import Tensor

from sfd_cli.formats import model_folder as model_files
from sfd_cli.formats.model_folder import load_config, save_model
from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig
from sfd_cli.networks.semantic_vae import SemanticVAE, SemanticVAEConfig
from sfd_cli.networks.texture_vae import TextureVAE, TextureVAEConfig

DIT = LightningDiTConfig(grid=2, in_channels=4, num_classes=3, semantic_channels=1, width=16, depth=1, heads=2)
SEMANTIC = SemanticVAEConfig(feature_width=6, channels=2, width=8, depth=1, heads=2)
TEXTURE = TextureVAEConfig(channels=2, block_channels=(4, 8), attention_levels=(1,), norm_groups=4, space_to_depth=2)
EXTRA = {"delta_t": 0.3, "classes": ["café", "tea"], "statistics": {"mean": [0.0], "std": [1.0]}}


def saved_dit(folder: Path) -> LightningDiT:
    torch.manual_seed(0)
    network = LightningDiT(DIT)
    averaged = {key: tensor + 1 for key, tensor in network.state_dict().items()}
    save_model(folder, "LightningDiT", DIT, {"model": network.state_dict(), "ema": averaged}, EXTRA)
    return network


def test_a_diffusion_transformer_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    network = saved_dit(tmp_path)
    for weights, offset in (("model", 0), ("ema", 1)):
        loaded, extra = load_dit(tmp_path, weights)
        assert loaded.config == DIT
        assert extra == EXTRA
        assert not loaded.training
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
        assert all(
            torch.equal(loaded.state_dict()[key], tensor + offset) for key, tensor in network.state_dict().items()
        )


def test_both_vaes_come_back_as_they_were_saved(tmp_path: Path) -> None:
    semantic, texture = SemanticVAE(SEMANTIC), TextureVAE(TEXTURE)
    save_model(tmp_path / "semantic", "SemanticVAE", SEMANTIC, {"model": semantic.state_dict()}, {})
    save_model(tmp_path / "texture", "TextureVAE", TEXTURE, {"model": texture.state_dict()}, {"psnr": 21.5})
    loaded_semantic, _ = load_semantic_vae(tmp_path / "semantic")
    loaded_texture, extra = load_texture_vae(tmp_path / "texture")
    assert loaded_semantic.config == SEMANTIC
    assert loaded_texture.config == TEXTURE
    assert extra == {"psnr": 21.5}
    tokens, images = torch.randn(1, 4, 6), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded_semantic.encode(tokens)[0], semantic.encode(tokens)[0])
        assert torch.equal(loaded_texture.encode(images)[0], texture.eval().encode(images)[0])


def test_equal_models_are_equal_files(tmp_path: Path) -> None:
    saved_dit(tmp_path / "a")
    saved_dit(tmp_path / "b")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["config.json", "ema.safetensors", "model.safetensors"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_configuration_is_readable_without_this_package(tmp_path: Path) -> None:
    saved_dit(tmp_path)
    description = json.loads((tmp_path / "config.json").read_text())
    assert load_config(tmp_path) == description
    config = description.pop("config")
    assert description == {"type": "LightningDiT", **EXTRA}
    assert config | {"prediction": "velocity"} == asdict(DIT)
    assert "prediction" not in config, "velocity models keep their bytes"


def test_a_model_that_predicts_data_says_so(tmp_path: Path) -> None:
    config = replace(DIT, prediction="data")
    weights = LightningDiT(config).state_dict()
    save_model(tmp_path, "LightningDiT", config, {"ema": weights}, {})
    assert load_config(tmp_path)["config"]["prediction"] == "data"
    assert load_dit(tmp_path)[0].config == config
    description = load_config(tmp_path)
    description["config"]["prediction"] = "noise"
    (tmp_path / "config.json").write_text(json.dumps(description))
    with refusal(tmp_path / "config.json", "noise", "velocity"):
        load_dit(tmp_path)


def test_a_save_cut_short_leaves_no_model_instead_of_a_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved_dit(tmp_path)
    real, calls = model_files.save_file, []

    def fails_second_time(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise OSError("disk full")
        real(tensors, path, metadata=metadata)

    monkeypatch.setattr(model_files, "save_file", fails_second_time)
    with pytest.raises(OSError, match="disk full"):
        saved_dit(tmp_path)
    with refusal(tmp_path, "config.json"):
        load_dit(tmp_path)
    assert not list(tmp_path.glob("*.tmp"))


def test_extra_keys_cannot_overwrite_the_description(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="type"):
        save_model(tmp_path, "SemanticVAE", SEMANTIC, {}, {"type": "other"})


def test_a_missing_model_is_one_clear_sentence(tmp_path: Path) -> None:
    with refusal(tmp_path / "nowhere", "sfd weights list"):
        load_dit(tmp_path / "nowhere")
    saved_dit(tmp_path)
    (tmp_path / "ema.safetensors").unlink()
    with refusal(tmp_path, "ema.safetensors", "weights present: model"):
        load_dit(tmp_path)


def test_a_model_of_another_type_is_refused(tmp_path: Path) -> None:
    saved_dit(tmp_path)
    with refusal(tmp_path, "LightningDiT", "SemanticVAE"):
        load_semantic_vae(tmp_path)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (
            '{"type": "LightningDiT", "config": {"grid": 2, "size": 3}}',
            ("LightningDiT", "in_channels is missing", "num_classes is missing", "size is unknown"),
        ),
        (
            '{"type": "LightningDiT", "config": {"grid": "2", "in_channels": 4, "num_classes": 3}}',
            ("LightningDiT",),
        ),
        (
            '{"type": "LightningDiT", "config": {"grid": 2, "in_channels": 4, "num_classes": 3, "mlp_ratio": "4"}}',
            ("LightningDiT",),
        ),
        ('{"type": "LightningDiT"}', ("config",)),
        ("[1]", ("model",)),
        ("{", ()),
    ],
)
def test_a_damaged_configuration_is_refused(tmp_path: Path, text: str, named: tuple[str, ...]) -> None:
    saved_dit(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with refusal(tmp_path / "config.json", *named):
        load_dit(tmp_path)


def test_weights_of_another_architecture_are_refused_by_the_name_of_the_key(tmp_path: Path) -> None:
    saved_dit(tmp_path)
    description = load_config(tmp_path)
    description["config"]["num_classes"] = 7
    (tmp_path / "config.json").write_text(json.dumps(description))
    with refusal(tmp_path / "ema.safetensors", "class_embedding.weight is (4, 16) instead of (8, 16)"):
        load_dit(tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"heads": 0}, "heads"),
        ({"heads": "2"}, "heads"),
        ({"width": 10**9}, "width"),
        ({"width": 16.5}, "width"),
        ({"grid": 10**9}, "grid"),
        ({"grid": 10**6, "width": 2**16}, "grid"),
        ({"patch_size": 0}, "patch_size"),
        ({"depth": -1}, "depth"),
        ({"depth": 10**7}, "depth"),
        ({"num_classes": 10**12}, "num_classes"),
        ({"in_channels": [4]}, "in_channels"),
        ({"semantic_channels": 5}, "semantic_channels"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio"),
        ({"mlp_ratio": float("inf")}, "mlp_ratio"),
        ({"qk_norm": "yes"}, "qk_norm"),
        ({"time_embedding": "triple"}, "time_embedding"),
    ],
    ids=str,
)
def test_an_architecture_that_cannot_be_is_refused_before_memory_is_taken(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    saved_dit(tmp_path)
    description = json.loads((tmp_path / "config.json").read_text())
    description["config"] |= changes
    (tmp_path / "config.json").write_text(json.dumps(description))
    with refusal(tmp_path / "config.json", named):
        load_dit(tmp_path)


def test_an_architecture_of_other_weights_is_refused_before_memory_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved_dit(tmp_path)
    description = json.loads((tmp_path / "config.json").read_text())
    description["config"] |= {"repa_width": 2**20, "repa_depth": 1, "feature_width": 2**20}  # terabytes
    (tmp_path / "config.json").write_text(json.dumps(description))
    with refusal(tmp_path / "ema.safetensors", "projector"):
        load_dit(tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"classes": 5}, "classes"),
        ({"classes": {"a": 1}}, "classes"),
        ({"classes": [["a"]]}, "classes.0"),
        ({"statistics": [1]}, "statistics"),
        ({"statistics": {"mean": "abc", "std": [1.0]}}, "statistics.mean"),
        ({"statistics": {"mean": [float("nan")], "std": [1.0]}}, "statistics.mean.0"),
        ({"statistics": {"mean": [0.0], "std": [float("inf")]}}, "statistics.std.0"),
        ({"statistics": {"mean": [0.0], "std": [0.0]}}, "statistics.std.0"),
        ({"image_size": "64"}, "image_size"),
        ({"delta_t": 2.0}, "delta_t"),
        ({"texture_vae": 5}, "texture_vae"),
        ({"type": [1]}, "type"),
    ],
    ids=str,
)
def test_facts_of_the_wrong_kind_are_refused_by_their_key(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    saved_dit(tmp_path)
    description = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(description))
    with refusal(tmp_path / "config.json", named):
        load_dit(tmp_path)

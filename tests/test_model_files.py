import json
import pickle
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfd_cli.errors import UserError
from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig
from sfd_cli.networks.semantic_vae import SemanticVAE, SemanticVAEConfig
from sfd_cli.networks.texture_vae import TextureVAE, TextureVAEConfig
from sfd_cli.weights import model_files
from sfd_cli.weights.model_files import (
    load_config,
    load_dit,
    load_semantic_vae,
    load_texture_vae,
    read_weights_file,
    save_model,
)

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
    assert description == {"type": "LightningDiT", "config": asdict(DIT), **EXTRA}
    assert load_config(tmp_path) == description


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
    with pytest.raises(UserError, match="no whole model"):
        load_dit(tmp_path)
    assert not list(tmp_path.glob("*.tmp"))


def test_extra_keys_cannot_overwrite_the_description(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="type"):
        save_model(tmp_path, "SemanticVAE", SEMANTIC, {}, {"type": "other"})


def test_a_missing_model_is_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no whole model"):
        load_dit(tmp_path / "nowhere")
    saved_dit(tmp_path)
    (tmp_path / "ema.safetensors").unlink()
    with pytest.raises(UserError, match=r"ema\.safetensors does not exist \(weights present: model\)"):
        load_dit(tmp_path)


def test_a_model_of_another_type_is_refused(tmp_path: Path) -> None:
    saved_dit(tmp_path)
    with pytest.raises(UserError, match="holds a LightningDiT, but a SemanticVAE is wanted"):
        load_semantic_vae(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"type": "LightningDiT", "config": {"grid": 2}}', "does not describe a LightningDiT"),
        ('{"type": "LightningDiT"}', "does not describe a model"),
        ("[1]", "does not describe a model"),
        ("{", "not valid JSON"),
    ],
)
def test_a_damaged_configuration_is_refused(tmp_path: Path, text: str, words: str) -> None:
    saved_dit(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=words):
        load_dit(tmp_path)


def test_weights_of_another_architecture_are_refused_by_the_name_of_the_key(tmp_path: Path) -> None:
    saved_dit(tmp_path)
    description = load_config(tmp_path)
    description["config"]["num_classes"] = 7
    (tmp_path / "config.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=r"class_embedding\.weight is \(4, 16\) instead of \(8, 16\)"):
        load_dit(tmp_path)


@given(part=st.floats(0, 1, exclude_max=True))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, suffix: str, part: float) -> None:
    whole = tmp_path / f"whole{suffix}"
    if not whole.exists():
        if suffix == ".pt":
            torch.save({"weight": torch.arange(50.0)}, whole)
        else:
            model_files.save_file({"weight": torch.arange(50.0)}, whole)
    data = whole.read_bytes()
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(data[: int(part * len(data))])
    with pytest.raises(UserError, match=f"cut\\{suffix}"):
        read_weights_file(cut)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin"])
def test_torch_files_and_their_wrappers_are_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save({"state_dict": {"weight": torch.arange(3)}, "epoch": 2}, path)
    read = read_weights_file(path)
    assert read["epoch"] == 2
    assert torch.equal(read["state_dict"]["weight"], torch.arange(3))


class Trap:
    """Unpickling it runs code: it creates the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("form", ["zip", "bare pickle"])
def test_a_pickle_is_never_executed_and_the_message_says_how_to_convert_it(tmp_path: Path, form: str) -> None:
    path, sprung = tmp_path / "checkpoint.pt", tmp_path / "sprung"
    content = {"ema": {"weight": torch.zeros(1)}, "config": Trap(sprung)}
    if form == "zip":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(UserError, match="convert it once"):
        read_weights_file(path)
    assert not sprung.exists()


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such weights file"):
        read_weights_file(tmp_path / "missing.pt")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"expected \.safetensors"):
        read_weights_file(tmp_path / "notes.txt")
    (tmp_path / "page.pt").write_text("<!DOCTYPE html><p>Not found</p>")
    with pytest.raises(UserError, match=r"page\.pt"):
        read_weights_file(tmp_path / "page.pt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(UserError, match="holds a list"):
        read_weights_file(tmp_path / "list.pt")

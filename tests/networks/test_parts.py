"""Images through a network a part at a time: no call sees more, and nothing but memory comes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_project import SIDE, tiny_settings, write_training_images
from torch import Tensor

from sfd_cli.config import load_settings
from sfd_cli.data.images import ImageManifest, ImageReader
from sfd_cli.evaluation.held_out import scored, texture_scores
from sfd_cli.networks import parts
from sfd_cli.networks.parts import by_parts, images_at_once
from sfd_cli.networks.texture_vae import TextureVAE, TextureVAEConfig
from sfd_cli.pipeline import taking_over
from sfd_cli.pipeline.encoding import posteriors

CPU = torch.device("cpu")
REPOSITORY = Path(__file__).parents[2]


def vae() -> TextureVAE:
    torch.manual_seed(0)
    return TextureVAE(TextureVAEConfig(3, (8, 8), norm_groups=4)).eval().requires_grad_(False)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images of every call of a texture VAE's encoder and decoder."""
    counts: list[int] = []
    for name in ("encode", "decode"):
        plain = getattr(TextureVAE, name)

        def counted(self: TextureVAE, images: Tensor, plain: Any = plain) -> Any:
            counts.append(len(images))
            return plain(self, images)

        monkeypatch.setattr(TextureVAE, name, counted)
    return counts


def at_once(monkeypatch: pytest.MonkeyPatch, images: int, side: int) -> None:
    monkeypatch.setattr(parts, "PIXELS_AT_ONCE", images * side**2)


@pytest.mark.parametrize(("side", "images"), [(256, 32), (512, 8), (64, 512), (1 << 12, 1)])
def test_how_many_are_seen_at_once_follows_from_their_area(side: int, images: int) -> None:
    assert images_at_once(side) == images
    # The widest layers of a VAE with 128 channels at the finest level stay where 32 bits index them.
    assert images == 1 or 128 * images * side**2 < 2**31


@pytest.mark.parametrize("count", [1, 5, 6, 12, 13])
def test_no_call_of_the_encoder_sees_more_and_the_posteriors_are_the_same(
    count: int, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, pixels = vae(), torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8)
    whole = posteriors(network, None, pixels, None)["texture"]
    assert seen == [count]
    seen.clear()
    at_once(monkeypatch, 6, SIDE)
    cut = posteriors(network, None, pixels, None)["texture"]
    assert seen == ([count] if count <= 6 else [6] * -(-count // 6))
    for a, b in zip(whole, cut, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(b, a, rtol=0, atol=1e-5)
        assert torch.equal(a, b) or count > 6, "so few images go through it as they are"


def test_a_part_is_of_the_same_bits_wherever_its_images_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A last part of fewer images would be rounded otherwise by kernels that go by their number."""
    at_once(monkeypatch, 4, SIDE)
    calls: list[int] = []

    def network(images: Tensor) -> tuple[Tensor]:
        calls.append(len(images))
        return (images.flatten(1).sum(1, keepdim=True) + len(images),)

    images = torch.rand(10, 3, SIDE, SIDE)
    (found,) = by_parts(network, images)
    assert calls == [4, 4, 4]
    assert torch.equal(found, images.flatten(1).sum(1, keepdim=True) + 4)


@pytest.mark.parametrize("name", ["demo", "fashion-mnist"])
def test_nothing_is_cut_of_what_the_small_presets_encode(name: str) -> None:
    settings = load_settings(REPOSITORY / "sfd_cli" / "presets" / f"{name}.yaml")
    most = max(settings.latents.batch_size * settings.images.flips, settings.texture_vae.batch_size)
    assert most <= images_at_once(settings.images.size)


@pytest.mark.parametrize("name", ["imagenet256-xl", "imagenet512-xl"])
def test_of_imagenet_a_batch_is_cut(name: str) -> None:
    settings = load_settings(REPOSITORY / "sfd_cli" / "presets" / f"{name}.yaml")
    assert settings.latents.batch_size * settings.images.flips > images_at_once(settings.images.size)


def test_keys_of_latents_tell_where_a_pass_was_cut(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    monkeypatch.setattr(taking_over, "_computed_by", lambda model: "weights")
    for name in ("open_texture_vae", "open_semantic"):
        monkeypatch.setattr(taking_over, name, lambda settings: None)
    keys = {}
    for images in (16, 15):
        at_once(monkeypatch, images, SIDE)
        keys[images] = taking_over.latent_keys(settings, [b"x" * 32], None, 8, "fp32")
    assert keys[16] != keys[15], "8 images and their mirror images are 16"
    at_once(monkeypatch, 1000, SIDE)
    assert taking_over.latent_keys(settings, [b"x" * 32], None, 8, "fp32") == keys[16]


def test_a_score_goes_by_parts_and_is_the_same(
    tmp_path: Path, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings(tmp_path)
    write_training_images(settings)
    manifest = ImageManifest.load(settings.paths.images)
    reader, rows, network = ImageReader(manifest, SIDE, 0), np.arange(10), vae()
    whole = texture_scores(network, reader, rows, 8, CPU)
    assert seen == [8, 8, 2, 2]
    seen.clear()
    at_once(monkeypatch, 3, SIDE)
    cut = texture_scores(network, reader, rows, 8, CPU)
    assert max(seen) == 3
    assert cut == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize(("count", "scores"), [(95, 95), (4096, 4096), (64_058, 4096)])
def test_of_a_large_set_a_part_of_what_is_held_out_is_scored(count: int, scores: int) -> None:
    rows = 20 * np.arange(count)
    found = scored(rows)
    assert len(found) == scores
    assert set(found.tolist()) <= set(rows.tolist())
    gaps = np.diff(found)
    assert gaps.min() >= 20 * (count // scores)
    assert gaps.max() <= 20 * -(-count // scores), "evenly spread"

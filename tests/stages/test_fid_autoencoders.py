"""`sfd fid`: what it says of the autoencoders and of sampled semantics, against numbers computed by hand."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins import score_by
from tiny_project import (
    CLASSES,
    SEMANTIC,
    SIDE,
    random_images,
    tiny_settings,
    write_features,
    write_models,
    write_training_images,
)
from two_processes import in_two_processes

from sfd_cli.config import Settings
from sfd_cli.data.images import ImageManifest
from sfd_cli.data.store import Store
from sfd_cli.data.validation_split import validation_split
from sfd_cli.distributed.processes import ALONE, Processes
from sfd_cli.errors import UserError
from sfd_cli.evaluation.autoencoders import score_autoencoders
from sfd_cli.evaluation.extractor import Extractor
from sfd_cli.files import read_json, write_json
from sfd_cli.formats.diffusers import write_autoencoder
from sfd_cli.formats.model_folder import load_model, save_model
from sfd_cli.networks.semantic_pca import SemanticPCA
from sfd_cli.networks.texture_pca import TexturePCA, TexturePCAConfig
from sfd_cli.networks.texture_vae import TextureVAE, TextureVAEConfig, to_pixels, to_signed
from sfd_cli.stages import fid

WIDTH, IMAGES, SAMPLES, TOKENS = 6, 24, 10, 40
WEIGHTS = np.random.default_rng(3).normal(size=(3 * SIDE * SIDE, WIDTH)).astype(np.float32) / 30


def crude() -> Extractor:
    """A fixed projection of the pixels."""
    weights = torch.from_numpy(WEIGHTS)
    return Extractor.of("dinov2", WIDTH, torch.device("cpu"), lambda images: images.flatten(1).float() / 255 @ weights)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A project with 24 images, tiny networks, tokens of 40 images, and 10 finished samples with their semantics."""
    settings = tiny_settings(tmp_path, semvae={"compressor": "pca", "channels": SEMANTIC})
    write_training_images(settings, IMAGES)
    write_models(settings)
    write_features(settings, TOKENS)
    write_semantic_codec(settings)
    folder = settings.paths.samples
    random_images(folder, [f"{index:06d}.png" for index in range(SAMPLES)], seed=2, brightness=0.8)
    write_json(folder / "labels.json", [index % 3 for index in range(SAMPLES)])
    facts = {"class_names": CLASSES, "semantics": True}
    write_json(folder / "settings.json", {"fingerprint": "f" * 64, "complete": True, "facts": facts, "settings": {}})
    keep(settings, np.random.default_rng(5).normal(size=(SAMPLES, SEMANTIC, 2, 2)))
    score_by(monkeypatch, crude)
    return settings


def write_semantic_codec(settings: Settings) -> SemanticPCA:
    """Principal components that hold the tokens of `write_features` up to rounding."""
    tokens = real_tokens(settings).reshape(-1, 12)
    covariance = torch.from_numpy(np.cov(tokens.T))
    network = SemanticPCA.of_tokens(torch.from_numpy(tokens.mean(axis=0)), covariance, SEMANTIC)
    save_model(settings.paths.semvae, "SemanticPCA", network.config, {"model": network.state_dict()}, {})
    write_json(settings.paths.semvae / "settings.json", {"fingerprint": "s", "complete": True})
    return network


def keep(settings: Settings, latents: np.ndarray) -> None:
    np.save(settings.paths.samples / "semantics.npy", latents.astype(np.float32))


def write_lossless_codec(settings: Settings) -> None:
    """A codec that keeps every component of every patch."""
    config = TexturePCAConfig(8, 192)
    save_model(settings.paths.texture_vae, "TexturePCA", config, {"model": TexturePCA(config).state_dict()}, {})


def record_fitting(settings: Settings, folder: Path, inputs: dict[str, str], holdout: float) -> None:
    record = {"fingerprint": "v", "complete": True, "settings": {"holdout": holdout}, "inputs": inputs}
    write_json(folder / "settings.json", record)


def real_tokens(settings: Settings) -> np.ndarray:
    """(40, 4, 12) float64, of images as they are."""
    store = Store(settings.paths.features)
    return store.read("tokens", np.arange(TOKENS), np.zeros(TOKENS, np.int64)).astype(np.float64)


def training_images(settings: Settings) -> np.ndarray:
    """(24, 3, H, W) uint8, in the order of the manifest."""
    manifest = ImageManifest.load(settings.paths.images)
    images = [np.asarray(Image.open(str(manifest.path(index)))) for index in range(len(manifest))]
    return np.stack(images).transpose(0, 3, 1, 2)


def through(network: Any, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return to_pixels(network.decode(network.encode(to_signed(torch.from_numpy(images.copy())))[0])).numpy()


def seen(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32) / 255 @ WEIGHTS


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Heusel et al. 2017, Equation 6; the root's trace by the eigenvalues of the product."""
    covariances = np.cov(a.T), np.cov(b.T)
    shift = a.mean(axis=0) - b.mean(axis=0)
    roots = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(min=0))
    return float(shift @ shift + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * roots.sum())


def halves(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Both random halves of so many images, by `fid.seed` 0, in their order."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return np.sort(order[: count // 2].numpy()), np.sort(order[count // 2 :].numpy())


def chosen(available: int, count: int) -> np.ndarray:
    return np.sort(torch.randperm(available, generator=torch.Generator().manual_seed(0))[:count].numpy())


def with_paths(settings: Settings, **paths: Path) -> Settings:
    return settings.model_copy(update={"paths": settings.paths.model_copy(update=paths)})


def test_reconstructions_are_compared_with_the_same_images_as_they_were(settings: Settings) -> None:
    result = fid.run(settings)
    images, network = training_images(settings), load_model(settings.paths.texture_vae, "model")
    half, other = halves(IMAGES)
    rows = half[chosen(len(half), SAMPLES)]
    returned, originals = seen(through(network, images[rows])), seen(images[rows])
    assert result["fd_dinov2_reconstructed"] == pytest.approx(frechet(returned, originals), rel=1e-4)
    assert result["counts"]["fd_dinov2_reconstructed"] == [SAMPLES, SAMPLES]
    matched = result["fd_dinov2_matched"]
    assert matched["images"] == SAMPLES
    assert matched["reconstructed"] == pytest.approx(frechet(returned, seen(images[other])), rel=1e-4)
    assert result["fd_dinov2_reconstructed"] > 1e-3


def test_a_codec_that_loses_nothing_is_at_zero_and_one_that_swaps_colours_is_not(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lossless_codec(settings)
    result = fid.run(settings)
    assert result["fd_dinov2_reconstructed"] == pytest.approx(0, abs=1e-9)
    half, other = halves(IMAGES)
    images = training_images(settings)
    real = frechet(seen(images[half[chosen(len(half), SAMPLES)]]), seen(images[other]))
    assert result["fd_dinov2_matched"]["reconstructed"] == pytest.approx(real, rel=1e-4)
    texture = result["autoencoders"]["texture"]
    assert texture["psnr"] == pytest.approx(88.13, abs=0.01)
    assert texture["ssim"] == pytest.approx(1, abs=1e-9)

    decode = TexturePCA.decode
    monkeypatch.setattr(TexturePCA, "decode", lambda codec, latents: decode(codec, latents).flip(1))
    broken = fid.run(settings)
    assert broken["fd_dinov2_reconstructed"] > 0.1
    assert broken["autoencoders"]["texture"]["psnr"] < 15
    assert broken["autoencoders"]["texture"]["ssim"] < 0.9


def test_the_codec_is_scored_on_images_that_were_held_out_of_its_fitting(settings: Settings) -> None:
    fingerprint = ImageManifest.load(settings.paths.images).fingerprint
    record_fitting(settings, settings.paths.texture_vae, {"images": fingerprint}, holdout=0.25)
    found = fid.run(settings)["autoencoders"]["texture"]
    _, rows = validation_split(IMAGES, 0.25)
    images = training_images(settings)[rows]
    errors = through(load_model(settings.paths.texture_vae, "model"), images).astype(float) - images
    expected = np.mean(10 * np.log10(255**2 / (errors**2).mean(axis=(1, 2, 3))))
    assert found["psnr"] == pytest.approx(expected, rel=1e-9)
    assert (found["images"], found["those"]) == (6, "held out of its fitting")
    assert found["lpips"] is None
    assert "sfd weights fetch" in found["lpips_reason"]


@pytest.mark.parametrize(
    ("inputs", "those"),
    [({"images": "another set"}, "of a set that it was not fitted to"), ({"weights": "w"}, "of imported weights")],
)
def test_a_codec_that_was_fitted_elsewhere_is_scored_on_as_many_images_as_there_are_samples(
    settings: Settings, inputs: dict[str, str], those: str
) -> None:
    record_fitting(settings, settings.paths.texture_vae, inputs, holdout=0.25)
    found = fid.run(settings)["autoencoders"]["texture"]
    assert (found["images"], found["those"]) == (SAMPLES, those)


def test_a_vae_of_other_code_is_scored_too(settings: Settings, tmp_path: Path) -> None:
    network = load_model(settings.paths.texture_vae, "model")
    theirs = tmp_path / "theirs"
    write_autoencoder(network, theirs)
    ours, imported = fid.run(settings), fid.run(with_paths(settings, texture_vae=theirs))
    assert imported["fd_dinov2_reconstructed"] == pytest.approx(ours["fd_dinov2_reconstructed"], rel=1e-5)
    found = imported["autoencoders"]["texture"]
    assert found["psnr"] == pytest.approx(ours["autoencoders"]["texture"]["psnr"], rel=1e-6)
    assert found["those"] == "of imported weights"
    assert str(theirs) in found["model"]


def test_the_semantic_codec_is_scored_on_tokens_that_were_held_out_of_its_fitting(settings: Settings) -> None:
    record_fitting(settings, settings.paths.semvae, {"features": "features"}, holdout=0.1)
    network = write_lossy_semantics(settings)
    found = fid.run(settings)["autoencoders"]["semantic"]
    _, rows = validation_split(TOKENS, 0.1)
    tokens = real_tokens(settings)[rows]
    components, scale, mean = (part.double().numpy() for part in (network.components, network.scale, network.mean))
    returned = (tokens - mean) / scale @ components.T @ components * scale + mean
    norms = np.linalg.norm(tokens, axis=-1) * np.linalg.norm(returned, axis=-1)
    assert found["mse"] == pytest.approx(((returned - tokens) ** 2).mean(), rel=1e-4)
    assert found["cosine"] == pytest.approx(((returned * tokens).sum(axis=-1) / norms).mean(), rel=1e-4)
    assert (found["images"], found["those"]) == (4, "held out of its fitting")


def write_lossy_semantics(settings: Settings) -> SemanticPCA:
    """Of the three components of the tokens the last one lost."""
    network = load_model(settings.paths.semvae, "model")
    network.components[-1] = 0
    save_model(settings.paths.semvae, "SemanticPCA", network.config, {"model": network.state_dict()}, {})
    return network


def test_sampled_semantics_are_decoded_and_compared_with_real_tokens(settings: Settings) -> None:
    network = write_lossy_semantics(settings)
    result = fid.run(settings)
    latents = np.load(settings.paths.samples / "semantics.npy").astype(np.float64)
    components, scale, mean = (part.double().numpy() for part in (network.components, network.scale, network.mean))

    def decoded(tokens: np.ndarray) -> np.ndarray:
        return tokens @ components * scale + mean

    real = real_tokens(settings)
    pooled = decoded(latents.reshape(SAMPLES, SEMANTIC, 4).transpose(0, 2, 1)).mean(axis=1)
    assert result["fd_semantics"] == pytest.approx(frechet(pooled, real.mean(axis=1)), rel=1e-3)
    half, other = halves(TOKENS)
    assert result["fd_semantics_halves"] == pytest.approx(
        frechet(real[half].mean(axis=1), real[other].mean(axis=1)), rel=1e-3
    )
    rows = half[chosen(len(half), SAMPLES)]
    returned = decoded((real[rows] - mean) / scale @ components.T).mean(axis=1)
    assert result["fd_semantics_reconstructed"] == pytest.approx(frechet(returned, real[rows].mean(axis=1)), rel=1e-3)
    assert result["fd_semantics_untrained"] > 0
    assert result["counts"]["fd_semantics_reference"] == TOKENS
    assert result["counts"]["fd_semantics_reconstructed"] == [SAMPLES, SAMPLES]
    assert {"real", "samples", "reconstructed", "untrained"} <= set(result["fd_semantics_matched"])
    assert read_json(settings.paths.metrics / "scores.json")["fd_semantics"] == result["fd_semantics"]
    assert "features" in read_json(settings.paths.metrics / "fid.json")["used"]["patch_tokens"]


def test_semantics_of_real_images_are_near_zero_and_those_in_another_order_of_channels_are_not(
    settings: Settings,
) -> None:
    network = load_model(settings.paths.semvae, "model")
    shutil.rmtree(settings.paths.features)
    write_features(settings, SAMPLES)
    tokens = Store(settings.paths.features).read("tokens", np.arange(SAMPLES), np.zeros(SAMPLES, np.int64))
    encoded, _ = network.encode(torch.from_numpy(tokens).float())
    latents = encoded.transpose(1, 2).reshape(SAMPLES, SEMANTIC, 2, 2).numpy()
    keep(settings, latents)
    same = fid.run(settings)["fd_semantics"]
    assert same == pytest.approx(0, abs=1e-3)
    keep(settings, 3 * latents[:, ::-1])
    assert fid.run(settings)["fd_semantics"] > 1


def test_only_the_semantics_of_scored_samples_are_compared(settings: Settings) -> None:
    some = settings.model_copy(update={"fid": settings.fid.model_copy(update={"num_images": 6})})
    result = fid.run(some)
    kept = np.load(settings.paths.samples / "semantics.npy")
    others = [index for index in range(SAMPLES) if index not in chosen(SAMPLES, 6)]
    kept[others] = 1e3
    np.save(settings.paths.samples / "semantics.npy", kept)
    assert fid.run(some)["fd_semantics"] == result["fd_semantics"]
    assert fid.run(settings)["fd_semantics"] > 100 * result["fd_semantics"]


def test_what_is_not_there_is_null_with_the_reason(settings: Settings, tmp_path: Path) -> None:
    shutil.rmtree(settings.paths.texture_vae)
    found = fid.run(settings)
    assert found["fd_dinov2_reconstructed"] is None
    assert str(settings.paths.texture_vae) in found["fd_dinov2_reconstructed_reason"]
    assert "reconstructed" not in found["fd_dinov2_matched"]
    assert found["autoencoders"]["texture"]["psnr"] is None
    assert str(settings.paths.texture_vae) in found["autoencoders"]["texture"]["ssim_reason"]
    assert found["fd_semantics"] > 0

    shutil.rmtree(settings.paths.semvae)
    found = fid.run(settings)
    assert found["fd_semantics"] is None
    assert str(settings.paths.semvae) in found["fd_semantics_reason"]
    assert found["autoencoders"]["semantic"]["mse"] is None
    shutil.rmtree(settings.paths.features)
    assert str(settings.paths.features) in fid.run(settings)["fd_semantics_reason"]

    theirs = tmp_path / "theirs"
    random_images(theirs, [f"{index}.png" for index in range(8)], seed=4)
    found = fid.run(with_paths(settings, samples=theirs))
    assert found["fd_semantics"] is None
    assert "semantics.npy" in found["fd_semantics_reason"]


@pytest.mark.parametrize("damage", [None, "image", "tokens"])
def test_two_processes_score_the_autoencoders_to_the_numbers_of_one(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str | None
) -> None:
    """Also where one of them meets a damaged file: that is the reason of one score, and the other is computed."""
    settings = settings.model_copy(update={"fid": settings.fid.model_copy(update={"batch_size": 4})})
    if damage == "image":
        for path in settings.paths.images.rglob("*.png"):
            path.write_bytes(b"no image")
    if damage == "tokens":
        monkeypatch.setattr(Store, "read", _damaged)

    def score(processes: Processes) -> Any:
        return score_autoencoders(settings, 24, processes)

    alone = score(ALONE)
    assert [found[key] is None for found, key in zip(alone.values(), ("psnr", "mse"), strict=True)] == [
        damage == "image",
        damage == "tokens",
    ]
    assert in_two_processes(tmp_path, score) == [alone, {}]


def _damaged(store: Store, field: str, rows: np.ndarray, *more: Any) -> Any:
    raise UserError(store.folder, f"{field} is damaged")


def test_semantics_of_another_model_are_not_decoded(settings: Settings) -> None:
    keep(settings, np.zeros((SAMPLES, SEMANTIC + 1, 2, 2)))
    found = fid.run(settings)
    assert found["fd_semantics"] is None
    assert f"{SEMANTIC} semantic channels" in found["fd_semantics_reason"]
    keep(settings, np.zeros((SAMPLES - 1, SEMANTIC, 2, 2)))
    assert f"{SAMPLES - 1} images" in fid.run(settings)["fd_semantics_reason"]
    (settings.paths.samples / "semantics.npy").write_bytes(b"no array")
    assert "semantics.npy" in fid.run(settings)["fd_semantics_reason"]


def test_a_codec_for_images_of_another_size_is_a_reason(settings: Settings) -> None:
    shutil.rmtree(settings.paths.dit)  # whose untrained images would be of another size
    config = TextureVAEConfig(4, (32,) * 6)
    save_model(settings.paths.texture_vae, "TextureVAE", config, {"model": TextureVAE(config).state_dict()}, {})
    found = fid.run(settings)
    assert found["fd_dinov2_reconstructed"] is None
    assert "multiple of 32" in found["fd_dinov2_reconstructed_reason"]
    assert "multiple of 32" in found["autoencoders"]["texture"]["psnr_reason"]

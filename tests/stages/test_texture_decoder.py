"""Components with a trained decoder behind them: it cleans, resumes to the same bytes, and shares its work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_loading import load_texture_vae
from refusals import require_refusal
from safetensors.torch import load_file
from tiny_project import tiny_settings, write_training_images
from two_processes import in_two_processes

from sfd_cli.config import Settings
from sfd_cli.data.images import ImageManifest, ImageReader
from sfd_cli.data.validation_split import validation_split
from sfd_cli.distributed.processes import Processes
from sfd_cli.errors import SettingError
from sfd_cli.files import write_json
from sfd_cli.networks.texture_pca import TexturePCA
from sfd_cli.networks.texture_vae import to_signed
from sfd_cli.report.curves import read_curves
from sfd_cli.stages import prepare_data, train_texture_vae
from sfd_cli.training import fit as loop
from sfd_cli.training.texture_compressors import PCA, TextureFitting

DECODER = {"compressor": "pca", "patch_size": 8, "decoder_channels": [8, 16], "norm_groups": 4}
OFTEN = {"steps": 12, "batch_size": 8, "learning_rate": 3e-3, "warmup_steps": 3, "checkpoint_every": 5, "log_every": 5}


def settings_for(root: Path, **changes: Any) -> Settings:
    settings = tiny_settings(root, texture_vae=DECODER | {"channels": 6} | OFTEN | changes)
    write_training_images(settings)
    write_json(settings.paths.images / "settings.json", {"fingerprint": "images", "complete": True})
    return settings


def weights_of(settings: Settings) -> dict[str, torch.Tensor]:
    return load_file(settings.paths.texture_vae / "model.safetensors")


def psnr(images: torch.Tensor, truth: torch.Tensor) -> float:
    error = (images.clamp(-1, 1) - truth).double().square().mean((1, 2, 3))
    return (10 * torch.log10(4 / error)).mean().item()


def test_it_brings_images_nearer_and_takes_noise_away(tmp_path: Path) -> None:
    """Held-out OpenMoji drawings, 28 of 192 components: linear decoding gives 21.5 dB, 18.0 dB with noise of 0.5."""
    training = {"steps": 250, "batch_size": 16, "learning_rate": 3e-3, "warmup_steps": 20, "decoder_noise": 0.5}
    network = DECODER | {"channels": 28, "decoder_channels": [16, 32], "norm_groups": 8}
    encoder = {"name": "dinov2_vits14", "weights": "random", "image_size": 56}
    settings = tiny_settings(
        tmp_path, images={"size": 32, "limit": 400}, encoder=encoder, texture_vae=network | training
    )
    prepare_data.run(settings)
    scores = train_texture_vae.run(settings)
    model, _ = load_texture_vae(settings.paths.texture_vae)
    assert isinstance(model, TexturePCA)
    manifest = ImageManifest.load(settings.paths.images)
    _, held_out = validation_split(len(manifest), settings.texture_vae.holdout)
    truth = to_signed(ImageReader(manifest, 32).read(held_out.tolist()))
    latents = model.encode(truth)[0]
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    noisy = latents + model.noise_deviations(torch.full((len(latents), 1, 1, 1), 0.5)) * noise
    found = [psnr(model.decode(code), truth) for code in (latents, noisy)]
    model.decoder = None
    linear = [psnr(model.decode(code), truth) for code in (latents, noisy)]
    assert scores["psnr"] == pytest.approx(found[0], abs=0.05)
    assert found[0] > linear[0] + 0.5
    assert found[1] > linear[1] + 1


def test_it_leaves_what_a_vae_leaves(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    scores = train_texture_vae.run(settings)
    assert sorted(path.name for path in settings.paths.texture_vae.iterdir()) == [
        ".settings.json",
        "config.json",
        "model.safetensors",
        "settings.json",
    ]
    log = settings.paths.metrics / "texture_vae"
    assert {"loss", "l1", "mse", "edge"} <= {path.stem for path in (log / "plots" / "metrics").iterdir()}
    assert read_curves(log)
    assert (log / "reconstructions.png").exists()
    written = json.loads((settings.paths.metrics / "texture_vae.json").read_text())
    assert written == {key: scores[key] for key in ("images", "psnr")}
    assert train_texture_vae.run(settings) == scores
    model, facts = load_texture_vae(settings.paths.texture_vae)
    assert (model.config.norm_groups, model.config.decoder_channels) == (4, (8, 16))
    assert facts["held_out"]["psnr"] == scores["psnr"]


def test_the_code_is_that_of_the_components_alone(tmp_path: Path) -> None:
    settings, linear = settings_for(tmp_path / "decoder"), settings_for(tmp_path / "linear", decoder_channels=[])
    train_texture_vae.run(settings)
    train_texture_vae.run(linear)
    found, expected = weights_of(settings), weights_of(linear)
    assert expected.keys() == {"mean", "components"}
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    spread = found["deviations"]
    assert (spread[:-1] >= spread[1:]).all()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_interrupted_training_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    unbroken, broken = (settings_for(tmp_path / place, precision=precision) for place in ("unbroken", "broken"))
    train_texture_vae.run(unbroken)

    def save_then_die(checkpoints: Any, state: Any, save: Any = loop.Checkpoints.save) -> None:
        save(checkpoints, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.Checkpoints, "save", save_then_die)
        with pytest.raises(KeyboardInterrupt):
            train_texture_vae.run(broken)
    assert not (broken.paths.texture_vae / "config.json").exists()
    train_texture_vae.run(broken)
    whole = [settings.paths.texture_vae / "model.safetensors" for settings in (unbroken, broken)]
    assert whole[0].read_bytes() == whole[1].read_bytes()


def test_two_processes_train_the_same_decoder(tmp_path: Path) -> None:
    alone, together = settings_for(tmp_path / "alone"), settings_for(tmp_path / "together")
    train_texture_vae.run(alone)

    def work(processes: Processes) -> float:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("WORLD_SIZE", "2")
            return float(train_texture_vae.run(together)["psnr"])

    assert len(set(in_two_processes(tmp_path, work))) == 1
    found, expected = weights_of(together), weights_of(alone)
    for name, tensor in expected.items():
        exact = name in ("mean", "components", "deviations")
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0 if exact else 1e-3, msg=name)


def test_a_batch_that_processes_cannot_share_is_refused_where_there_is_a_decoder_to_train(tmp_path: Path) -> None:
    for decoder in ([8, 16], []):
        settings = settings_for(tmp_path, decoder_channels=decoder)
        reader = ImageReader(ImageManifest.load(settings.paths.images), settings.images.size)
        fitting = TextureFitting(settings, reader, np.arange(4), torch.device("cpu"), tmp_path / "checkpoints")
        if decoder:
            with pytest.raises(SettingError) as refused:
                PCA.check(fitting, Processes(0, 3, 0))
            require_refusal(refused.value, "batch_size", 8, 3)
        else:
            PCA.check(fitting, Processes(0, 3, 0))
        assert PCA.is_trained(settings) == bool(decoder)

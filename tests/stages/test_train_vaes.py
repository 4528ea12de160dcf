"""The two VAE trainers: they learn, resume to the same bytes, report on held-out images, and import weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from artifact_records import RECORDS
from model_loading import load_semantic, load_semantic_vae, load_texture_vae
from PIL import Image
from pydantic import ValidationError
from refusals import refusal
from safetensors.torch import load_file
from tiny_project import tiny_settings, write_features, write_training_images
from two_processes import in_two_processes

from sfd_cli.config import SemVAE, Settings
from sfd_cli.data.images import ImageManifest, ImageReader
from sfd_cli.data.store import Store
from sfd_cli.data.validation_split import validation_split
from sfd_cli.distributed.processes import Processes
from sfd_cli.errors import SettingError
from sfd_cli.files import write_json
from sfd_cli.formats.files import export_model
from sfd_cli.formats.reference_semantic_vae import semantic_vae_to_reference
from sfd_cli.networks.gaussian import draw, kl_divergence
from sfd_cli.networks.semantic_pca import SemanticPCA, SemanticPCAConfig
from sfd_cli.networks.semantic_vae import SemanticVAE, SemanticVAEConfig
from sfd_cli.networks.texture_pca import TexturePCA
from sfd_cli.networks.texture_vae import TextureVAE
from sfd_cli.report.curves import read_curves
from sfd_cli.stages import train_semvae, train_texture_vae
from sfd_cli.tables import COMPRESSORS
from sfd_cli.training import fit as loop
from sfd_cli.training.compressors import Compressor, Fitting

REFERENCE = Path(__file__).parents[1] / "reference" / "texture_vae_f16.safetensors"


def settings_for(root: Path, mirror: bool = True, **changes: Any) -> Settings:
    shared: dict[str, Any] = {"batch_size": 8, "checkpoint_every": 5, "log_every": 5, "learning_rate": 3e-3}
    semvae = {"channels": 3, "width": 16, "depth": 1, "heads": 2, "steps": 60, "warmup_steps": 5, **shared}
    texture = {"block_channels": [8, 8, 8, 8], "norm_groups": 4, "steps": 40, "warmup_steps": 5, **shared}
    changed = {"semvae": {**semvae, **changes}, "texture_vae": {**texture, **changes}}
    return tiny_settings(root, images={"mirror": mirror}, **changed)


def write_images(settings: Settings) -> None:
    write_training_images(settings)
    write_json(settings.paths.images / "settings.json", {"fingerprint": "images", "complete": True})


def test_the_semantic_vae_learns_to_reconstruct_held_out_tokens(tmp_path: Path) -> None:
    short, long = settings_for(tmp_path / "short", steps=1), settings_for(tmp_path / "long", steps=300)
    for settings in (short, long):
        write_features(settings)
    before, after = train_semvae.run(short), train_semvae.run(long)
    assert after["images"] == 2
    assert after["mse"] < 0.3 * before["mse"]
    assert after["cosine"] > 0.8 > before["cosine"]
    assert len(after["latent_std"]) == 3
    assert json.loads((tmp_path / "long" / "metrics" / "semvae.json").read_text())["mse"] == after["mse"]


def test_the_semantic_vae_folder_is_self_contained(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, steps=3)
    write_features(settings)
    train_semvae.run(settings)
    model, _ = load_semantic_vae(settings.paths.semvae)
    assert model.encode(torch.zeros(2, 4, 12))[0].shape == (2, 4, 3)
    assert sorted(path.name for path in settings.paths.semvae.iterdir()) == [
        ".settings.json",
        "config.json",
        "model.safetensors",
        "settings.json",
    ]


def test_the_texture_vae_learns_and_shows_it(tmp_path: Path) -> None:
    short, long = (
        settings_for(tmp_path / "short", steps=1),
        settings_for(tmp_path / "long", steps=200, learning_rate=1e-2),
    )
    for settings in (short, long):
        write_images(settings)
    before, after = train_texture_vae.run(short), train_texture_vae.run(long)
    assert after["psnr"] > before["psnr"] + 1
    with Image.open(after["picture"]) as picture:
        assert picture.height == 2 * 128
    model, _ = load_texture_vae(long.paths.texture_vae)
    assert model.latent_channels == 4


@pytest.mark.parametrize("mirror", [True, False])
@pytest.mark.parametrize("stage", ["semvae", "texture_vae"])
def test_an_interrupted_training_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, mirror: bool
) -> None:
    run = {"semvae": train_semvae.run, "texture_vae": train_texture_vae.run}[stage]
    weights = []
    for place in ("unbroken", "broken"):
        settings = settings_for(tmp_path / place, mirror, steps=12)
        write_features(settings)
        write_images(settings)
        if place == "broken":
            with monkeypatch.context() as patch:
                patch.setattr(loop.Checkpoints, "save", _save_then_die(loop.Checkpoints.save))
                with pytest.raises(KeyboardInterrupt):
                    run(settings)
            assert not (getattr(settings.paths, stage) / "config.json").exists()
        run(settings)
        weights.append(load_file(getattr(settings.paths, stage) / "model.safetensors"))
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


@pytest.mark.parametrize("stage", ["semvae", "texture_vae"])
def test_training_in_bf16_learns_about_the_same_and_leaves_float32(tmp_path: Path, stage: str) -> None:
    run = {"semvae": train_semvae.run, "texture_vae": train_texture_vae.run}[stage]
    found = {}
    for precision in ("fp32", "bf16"):
        settings = settings_for(tmp_path / precision, steps=8, precision=precision)
        write_features(settings)
        write_images(settings)
        run(settings)
        found[precision] = load_file(getattr(settings.paths, stage) / "model.safetensors")
        record = json.loads((getattr(settings.paths, stage) / "settings.json").read_text())["settings"]
        assert record.get("precision") == (None if precision == "fp32" else "bf16")
    assert {tensor.dtype for tensor in found["bf16"].values()} == {torch.float32}
    differences = [(found["fp32"][name] - tensor).abs().max().item() for name, tensor in found["bf16"].items()]
    assert 1e-6 < max(differences) < 0.05


def _save_then_die(save: Any) -> Any:
    def saved(checkpoints: Any, state: Any) -> None:
        save(checkpoints, state)
        raise KeyboardInterrupt

    return saved


def test_lost_metrics_are_written_again_without_training(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, steps=3)
    write_features(settings)
    first = train_semvae.run(settings)
    (settings.paths.metrics / "semvae.json").unlink()
    (settings.paths.features / "index.h5").unlink()  # training again would need it
    assert train_semvae.run(settings) == first
    assert (settings.paths.metrics / "semvae.json").exists()


def test_published_weights_are_imported_and_scored(tmp_path: Path) -> None:
    state = {
        name.removeprefix("state_dict."): tensor
        for name, tensor in load_file(REFERENCE).items()
        if name.startswith("state_dict.")
    }
    checkpoint = tmp_path / "ldm.ckpt"
    torch.save({"state_dict": state}, checkpoint)
    layout = {
        "channels": 6,
        "block_channels": [32, 32, 32, 32, 64],
        "weights": str(checkpoint),
        "norm_groups": 32,
        "attention_levels": [4],
        "layers_per_block": 2,
    }
    settings = tiny_settings(
        tmp_path,
        texture_vae=layout,
        images={"size": 32},
        encoder={"name": "dinov2_vits14", "weights": "random", "image_size": 28},
    )
    write_images(settings)
    scores = train_texture_vae.run(settings)
    assert np.isfinite(scores["psnr"])
    model, _ = load_texture_vae(settings.paths.texture_vae)
    assert isinstance(model, TextureVAE)
    assert model.downsampling == 16
    wrong = settings.model_copy(
        update={"texture_vae": settings.texture_vae.model_copy(update={"channels": 4}), "paths": settings.paths}
    )
    with refusal("texture_vae.weights", checkpoint, "channels 6 instead of 4"):
        train_texture_vae.run(wrong)
    assert load_texture_vae(settings.paths.texture_vae)[0].config == model.config


def test_principal_components_keep_what_varies_and_are_saved_like_a_semantic_vae(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    components = settings.semvae.model_copy(update={"compressor": "pca"})
    settings = settings.model_copy(update={"semvae": components})
    write_features(settings)
    scores = train_semvae.run(settings)
    assert scores["cosine"] > 0.999  # the tokens live in three dimensions
    assert "kl" not in scores
    model, extra = load_semantic(settings.paths.semvae)
    assert isinstance(model, SemanticPCA)
    assert extra["held_out"]["mse"] == scores["mse"]
    assert train_semvae.run(settings) == scores
    before = {path.name: path.read_bytes() for path in settings.paths.semvae.iterdir()}
    with refusal("semvae.channels", 12, 13):
        train_semvae.run(settings.model_copy(update={"semvae": components.model_copy(update={"channels": 13})}))
    assert {path.name: path.read_bytes() for path in settings.paths.semvae.iterdir()} == before


def evaluated(stage: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch, folder: Path) -> tuple[Any, Any, bytes]:
    """What a stage gives in two processes, how many held-out batches each scored, and what is in the metrics."""
    monkeypatch.setenv("WORLD_SIZE", "2")

    def work(processes: Processes) -> tuple[Any, int]:
        encoded = 0
        plain = (SemanticPCA.encode, TexturePCA.encode)

        def counted(network: Any, *inputs: Any) -> Any:
            nonlocal encoded
            encoded += 1
            return plain[isinstance(network, TexturePCA)](network, *inputs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SemanticPCA, "encode", counted)
            patch.setattr(TexturePCA, "encode", counted)
            return stage.run(settings), encoded

    answers = in_two_processes(folder, work)
    monkeypatch.delenv("WORLD_SIZE")
    name = stage.__name__.rpartition("train_")[2]
    return answers[0][0], [encoded for _, encoded in answers], (settings.paths.metrics / f"{name}.json").read_bytes()


@pytest.mark.parametrize("holdout", [0.5, 0.05])
def test_two_processes_share_the_evaluation_to_the_bytes_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holdout: float
) -> None:
    """Also where there are fewer batches than processes; only the first one fits the components."""
    for stage, section in ((train_semvae, "semvae"), (train_texture_vae, "texture_vae")):
        written = []
        for name in ("alone", "together"):
            settings = components_of_patches(settings_for(tmp_path / name, batch_size=5, holdout=holdout))
            semvae = settings.semvae.model_copy(update={"compressor": "pca"})
            settings = settings.model_copy(update={"semvae": semvae})
            write_features(settings)
            write_images(settings)
            if name == "alone":
                scores = stage.run(settings)
                batches = -(-scores["images"] // 5)
                written.append((settings.paths.metrics / f"{section}.json").read_bytes())
            else:
                (meeting := tmp_path / section).mkdir()
                _, shares, metrics = evaluated(stage, settings, monkeypatch, meeting)
                pictured = section == "texture_vae"  # by the first process
                assert shares == [-(-batches // 2) + pictured, batches // 2]
                written.append(metrics)
        assert written[0] == written[1]


@pytest.mark.parametrize("section", ["semvae", "texture_vae"])
def test_two_processes_train_the_vae_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str) -> None:
    """By what it does: weights without a gradient, such as the bias of keys, are moved by Adam as rounding has it."""
    stage = {"semvae": train_semvae, "texture_vae": train_texture_vae}[section]
    seen = torch.rand(4, 4, 12) if section == "semvae" else 2 * torch.rand(4, 3, 32, 32) - 1
    found, curves = [], []
    for name in ("alone", "together"):
        settings = settings_for(tmp_path / name, steps=10)
        write_features(settings)
        write_images(settings)
        if name == "alone":
            stage.run(settings)
        else:
            monkeypatch.setenv("WORLD_SIZE", "2")
            in_two_processes(tmp_path, lambda processes, settings=settings: stage.run(settings))
            monkeypatch.delenv("WORLD_SIZE")
        load = load_semantic_vae if section == "semvae" else load_texture_vae
        network = load(getattr(settings.paths, section))[0]
        with torch.no_grad():
            found.append(network.encode(seen)[0])
        curves.append(read_curves(settings.paths.metrics / section))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
    assert [curve.name for curve in curves[0]] == [curve.name for curve in curves[1]] != []
    for alone, together in zip(*curves, strict=True):
        np.testing.assert_allclose(together.values, alone.values, rtol=1e-4)


def components_of_patches(settings: Settings, **keys: Any) -> Settings:
    section = settings.texture_vae.model_copy(update={"compressor": "pca", "patch_size": 8, "channels": 6, **keys})
    return settings.model_copy(update={"texture_vae": section})


@pytest.mark.parametrize("mirror", [True, False])
def test_principal_components_of_patches_are_those_of_the_training_images_and_their_mirror_images(
    tmp_path: Path, mirror: bool
) -> None:
    settings = components_of_patches(settings_for(tmp_path, mirror))
    write_images(settings)
    scores = train_texture_vae.run(settings)
    model, facts = load_texture_vae(settings.paths.texture_vae)
    files = ImageManifest.load(settings.paths.images).files
    images = np.stack([np.asarray(Image.open(settings.paths.images / file)) for file in files]) / 127.5 - 1
    training, held_out = validation_split(len(files), settings.texture_vae.holdout)
    views = [images[training], images[training][:, :, ::-1]] if mirror else [images[training]]
    patches = np.concatenate(views).reshape(-1, 2, 8, 2, 8, 3).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 192)
    mean = patches.mean(axis=0)
    expected = np.linalg.svd(patches - mean, full_matrices=False)[2][:6]
    np.testing.assert_allclose(model.mean.numpy(), mean, atol=1e-6)
    found = model.components.double().numpy()
    np.testing.assert_allclose(np.abs((found * expected).sum(axis=1)), np.ones(6), atol=1e-5)
    largest = np.abs(found) > np.abs(found).max(axis=1, keepdims=True) * (1 - 1e-5)
    assert largest.sum(axis=1).max() == (2 if mirror else 1), "antisymmetric components have two largest entries"
    assert (np.take_along_axis(found, largest.argmax(axis=1)[:, None], axis=1) > 0).all()

    seen = images[held_out].reshape(-1, 2, 8, 2, 8, 3).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 192)
    kept = np.clip((seen - mean) @ expected.T @ expected + mean, -1, 1)
    error = np.square(np.round((kept + 1) * 127.5) - (seen + 1) * 127.5).reshape(len(held_out), -1).mean(axis=1)
    assert scores["psnr"] == pytest.approx((10 * np.log10(255**2 / error)).mean(), abs=0.02)
    assert (scores["images"], "kl" in scores, facts["held_out"]["psnr"]) == (1, False, scores["psnr"])


def test_principal_components_of_patches_leave_what_a_vae_leaves_but_no_curves(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, steps=10)
    write_images(settings)
    train_texture_vae.run(settings)
    log = settings.paths.metrics / "texture_vae"
    assert read_curves(log)
    components = components_of_patches(settings)
    scores = train_texture_vae.run(components)
    assert read_curves(log) == []
    assert sorted(path.name for path in log.iterdir()) == ["metrics.json", "reconstructions.png"]
    with Image.open(scores["picture"]) as picture:
        assert picture.height == 2 * 128
    written = json.loads((settings.paths.metrics / "texture_vae.json").read_text())
    assert written == {key: scores[key] for key in ("images", "psnr")}
    before = {path.name: path.read_bytes() for path in settings.paths.texture_vae.iterdir()}
    assert sorted(before) == [".settings.json", "config.json", "model.safetensors", "settings.json"]
    assert train_texture_vae.run(components) == scores
    assert {path.name: path.read_bytes() for path in settings.paths.texture_vae.iterdir()} == before
    again = components.model_copy(
        update={"paths": components.paths.model_copy(update={"texture_vae": tmp_path / "again"})}
    )
    train_texture_vae.run(again)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == before["model.safetensors"]
    train_texture_vae.run(settings)
    assert read_curves(log)
    assert (log / "reconstructions.png").exists()


def test_components_are_not_weights_to_import_and_no_format_holds_them(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    write_images(settings)
    train_texture_vae.run(components_of_patches(settings))
    folder = settings.paths.texture_vae
    imported = settings.texture_vae.model_copy(update={"weights": str(folder)})
    elsewhere = settings.paths.model_copy(update={"texture_vae": tmp_path / "imported"})
    with refusal("texture_vae.weights", folder, "TexturePCA", "TextureVAE"):
        train_texture_vae.run(settings.model_copy(update={"texture_vae": imported, "paths": elsewhere}))
    assert not (tmp_path / "imported").exists()
    with refusal(folder, "TexturePCA", "TextureVAE"):
        export_model(folder, tmp_path / "components.ckpt")


def test_another_compressor_is_one_entry(tmp_path: Path) -> None:
    def check(fitting: Fitting, processes: Processes) -> None:
        if fitting.section.channels > 3:
            raise SettingError("channels", f"{fitting.section.channels} are too many", "use 3")

    def first_features(fitting: Fitting) -> SemanticPCA:
        return SemanticPCA(SemanticPCAConfig(fitting.width, fitting.section.channels))

    entry = Compressor(SemanticPCA, SemanticPCAConfig, first_features, check)
    COMPRESSORS.add("first", entry)
    try:
        settings = settings_for(tmp_path)
        values = settings.semvae.model_dump() | {"compressor": "first"}
        settings = settings.model_copy(update={"semvae": SemVAE.model_validate(values)})
        write_features(settings)
        scores = train_semvae.run(settings)
        model, _ = load_semantic(settings.paths.semvae)
        assert torch.equal(model.state_dict()["components"], torch.eye(3, 12))
        assert scores["mse"] > 0
        assert [path.name for path in (settings.paths.metrics / "semvae").iterdir()] == ["metrics.json"]
        with refusal("semvae.channels", 4, 3):
            more = settings.semvae.model_copy(update={"channels": 4})
            train_semvae.run(settings.model_copy(update={"semvae": more}))
    finally:
        COMPRESSORS.remove("first")
    with pytest.raises(ValidationError) as unknown:
        SemVAE.model_validate(values)
    assert [problem["loc"] for problem in unknown.value.errors()] == [("compressor",)]


def test_without_semantics_only_the_record_is_written(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    settings = settings.model_copy(update={"semvae": settings.semvae.model_copy(update={"compressor": "none"})})
    assert train_semvae.run(settings)["compressor"] == "none"
    assert sorted(path.name for path in settings.paths.semvae.iterdir()) == RECORDS
    assert json.loads((settings.paths.metrics / "semvae.json").read_text()) == {"compressor": "none"}


def test_what_is_not_trained_has_no_curves_of_what_was(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, steps=10)
    write_features(settings)
    train_semvae.run(settings)
    log = settings.paths.metrics / "semvae"
    assert read_curves(log)
    for compressor in ("pca", "none"):
        section = settings.semvae.model_copy(update={"compressor": compressor})
        train_semvae.run(settings.model_copy(update={"semvae": section}))
        assert read_curves(log) == []
        assert [path.name for path in log.iterdir()] == ["metrics.json"]


def test_a_reference_semantic_vae_is_imported_and_scored(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = SemanticVAEConfig(feature_width=12, channels=3, width=16, depth=1, heads=2)
    weights = SemanticVAE(config).state_dict()
    checkpoint = tmp_path / "semvae.pt"
    torch.save({"model_state_dict": semantic_vae_to_reference(config, weights)}, checkpoint)
    settings = settings_for(tmp_path)
    imported = settings.semvae.model_copy(update={"weights": str(checkpoint)})
    settings = settings.model_copy(update={"semvae": imported})
    write_features(settings)
    scores = train_semvae.run(settings)
    assert scores["images"] == 2
    model, _ = load_semantic_vae(settings.paths.semvae)
    assert model.config == config
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in weights.items())
    wider = imported.model_copy(update={"width": 32})
    before = {path.name: path.read_bytes() for path in settings.paths.semvae.iterdir()}
    with refusal(checkpoint, "semvae.width 16", "width 32", "semvae.heads"):
        train_semvae.run(settings.model_copy(update={"semvae": wider}))
    assert {path.name: path.read_bytes() for path in settings.paths.semvae.iterdir()} == before


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    write_images(settings)
    absent = settings.texture_vae.model_copy(update={"weights": str(tmp_path / "absent.ckpt")})
    with refusal(tmp_path / "absent.ckpt"):
        train_texture_vae.run(settings.model_copy(update={"texture_vae": absent}))


def test_held_out_images_are_spread_and_disjoint() -> None:
    training, held_out = validation_split(100, 0.05)
    assert held_out.tolist() == [0, 20, 40, 60, 80]
    assert sorted([*training, *held_out]) == list(range(100))
    assert [len(part) for part in validation_split(2, 0.01)] == [1, 1]
    with pytest.raises(ValueError, match="cannot be split"):
        validation_split(1, 0.5)


def test_the_gaussians_kl_is_zero_at_the_prior_and_matches_torch() -> None:
    mean, logvar = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    assert torch.equal(kl_divergence(torch.zeros(2, 3), torch.zeros(2, 3)), torch.zeros(2))
    posterior = torch.distributions.Normal(mean, torch.exp(0.5 * logvar))
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum((1, 2))
    torch.testing.assert_close(kl_divergence(mean, logvar), expected)
    torch.testing.assert_close(draw(mean, logvar, torch.ones_like(mean)), mean + posterior.stddev)


@pytest.mark.parametrize("mirror", [True, False])
def test_the_texture_vae_sees_mirror_images_only_where_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirror: bool
) -> None:
    settings = settings_for(tmp_path, mirror, steps=8)
    write_images(settings)
    seen: list[torch.Tensor] = []
    forward = TextureVAE.forward

    def watched(network: TextureVAE, pixels: torch.Tensor, *rest: Any) -> Any:
        seen.append(pixels)
        return forward(network, pixels, *rest)

    monkeypatch.setattr(TextureVAE, "forward", watched)
    train_texture_vae.run(settings)
    manifest = ImageManifest.load(settings.paths.images)
    originals = ImageReader(manifest, settings.images.size).read(range(len(manifest))).float() / 127.5 - 1
    shown = torch.cat(seen)
    distance = (shown[:, None] - originals).abs().amax((2, 3, 4)).amin(1)
    assert len(shown) == 64
    assert bool((distance < 1e-6).all()) != mirror
    flipped = (shown.flip(-1)[:, None] - originals).abs().amax((2, 3, 4)).amin(1)
    assert bool(((distance < 1e-6) | (flipped < 1e-6)).all())
    recorded = json.loads((settings.paths.texture_vae / "settings.json").read_text())["settings"]
    assert recorded.get("mirror", "unset") == ("unset" if mirror else False)


def test_components_of_features_without_mirror_images_are_of_the_images_as_they_are(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, mirror=False)
    settings = settings.model_copy(update={"semvae": settings.semvae.model_copy(update={"compressor": "pca"})})
    write_features(settings)
    train_semvae.run(settings)
    store = Store(settings.paths.features)
    training, _ = validation_split(len(store), settings.semvae.holdout)
    tokens = store.read("tokens", training)[:, 0].reshape(-1, 12).astype(np.float64)
    largest = np.linalg.eigh(np.corrcoef(tokens.T))[1][:, :-4:-1]
    model, _ = load_semantic(settings.paths.semvae)
    components = model.state_dict()["components"].double().numpy()
    np.testing.assert_allclose(np.abs(components @ largest), np.eye(3), atol=1e-4)
    np.testing.assert_allclose(model.state_dict()["mean"], tokens.mean(0), rtol=1e-4, atol=1e-5)

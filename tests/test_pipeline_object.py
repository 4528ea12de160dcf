"""`SemanticFirstPipeline`: the same numbers as the stages, saved and loaded without loss, errors in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from reference_files import part
from tiny_project import CLASSES, SEMANTIC, SIDE, TEXTURE, tiny_settings, write_models

from sfd_cli.config import Settings
from sfd_cli.errors import UserError
from sfd_cli.networks.semantic_vae import SemanticVAE, SemanticVAEConfig
from sfd_cli.networks.texture_vae import TextureVAE, TextureVAEConfig
from sfd_cli.pipeline import SemanticFirstPipeline
from sfd_cli.stages import sample as stage
from sfd_cli.weights.convert import texture_vae_to_ldm
from sfd_cli.weights.model_files import load_dit, save_model

CHANNELS = TEXTURE + SEMANTIC
WIDTH = 192  # of the tokens of vit_tiny


def project(root: Path, **sample: Any) -> Settings:
    encoder = {"name": "vit_tiny_patch16_224", "weights": "random", "image_size": 32}
    settings = tiny_settings(root, sample=sample, encoder=encoder, semvae={"channels": SEMANTIC})
    write_models(settings)
    torch.manual_seed(3)
    config = SemanticVAEConfig(WIDTH, SEMANTIC, width=16, depth=1, heads=2)
    save_model(settings.paths.semvae, "SemanticVAE", config, {"model": SemanticVAE(config).state_dict()}, {})
    network, extra = load_dit(settings.paths.dit)
    halves = {name: tensor / 2 for name, tensor in network.state_dict().items()}
    save_model(settings.paths.guide, "LightningDiT", network.config, {"ema": halves}, extra)
    return settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return project(tmp_path, guidance="autoguidance")


@pytest.fixture
def pipeline(settings: Settings) -> SemanticFirstPipeline:
    return SemanticFirstPipeline.from_settings(settings, encoder=True)


def test_a_call_gives_the_images_of_sfd_sample(settings: Settings, pipeline: SemanticFirstPipeline) -> None:
    stage.run(settings)
    images = pipeline([index % 3 for index in range(12)]).images
    for index, image in enumerate(images):
        written = np.asarray(Image.open(settings.paths.samples / f"{index:06d}.png"))
        assert np.array_equal(np.asarray(image), written)


def test_given_noise_and_labels_give_the_references_sample(tmp_path: Path) -> None:
    """A published-style checkpoint, its statistics and an LDM autoencoder, loaded as they are."""
    given = part("dit_sfd", "sample.")
    torch.save({"ema": part("dit_sfd", "model.")}, tmp_path / "4000000.pt")
    torch.manual_seed(0)
    vae = TextureVAE(TextureVAEConfig(8, (32, 32), norm_groups=32))
    torch.save({"state_dict": texture_vae_to_ldm(vae.config, vae.state_dict())}, tmp_path / "vae.ckpt")
    for name, channels in (("texture", 8), ("semantic", 4)):
        shape = (1, channels, 1, 1)
        torch.save({"mean": torch.full(shape, 0.5), "std": torch.full(shape, 2.0)}, tmp_path / f"{name}.pt")
    pipeline = SemanticFirstPipeline.from_checkpoints(
        tmp_path / "4000000.pt",
        tmp_path / "vae.ckpt",
        texture_statistics=tmp_path / "texture.pt",
        semantic_statistics=tmp_path / "semantic.pt",
        device="cpu",
        seed=3,
    )
    options = {"solver": "euler", "steps": 20, "time_grid": "one-span"}
    latents = pipeline.sample_latents(given["y"].tolist(), noise=given["noise"], **options)
    torch.testing.assert_close(latents, given["euler21"], atol=1e-4, rtol=0)
    with torch.no_grad():
        decoded = (vae.eval().decode(latents[:, :8] * 2 + 0.5).clamp(-1, 1) + 1) * 127.5
    assert (pipeline.decode(latents).float() - decoded).abs().max() <= 0.51


def test_a_saved_pipeline_is_the_same_pipeline(pipeline: SemanticFirstPipeline, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    pipeline.save_pretrained(folder)
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".json", ".safetensors"}
    loaded = SemanticFirstPipeline.from_pretrained(folder, device="cpu")
    assert loaded.class_names == CLASSES
    images = [pipe(["squares", 0], seed=5, output="uint8").images for pipe in (pipeline, loaded)]
    assert torch.equal(*images)
    pixels = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    torch.testing.assert_close(loaded.encode(pixels), pipeline.encode(pixels), atol=1e-6, rtol=0)
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    for path in folder.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (again / path.relative_to(folder)).read_bytes()


def test_positions_of_an_imported_transformer_are_saved_too(tmp_path: Path, settings: Settings) -> None:
    pipeline = SemanticFirstPipeline.from_settings(settings)
    pipeline.dit.position += 1e-3
    pipeline.save_pretrained(tmp_path / "saved")
    loaded = SemanticFirstPipeline.from_pretrained(tmp_path / "saved", device="cpu")
    assert torch.equal(loaded.dit.position, pipeline.dit.position)


def test_images_come_in_the_form_asked_for(pipeline: SemanticFirstPipeline) -> None:
    picture = pipeline("circles").images[0]
    assert isinstance(picture, Image.Image)
    assert picture.size == (SIDE, SIDE)
    pixels = pipeline(0, output="uint8").images
    assert (pixels.shape, pixels.dtype) == ((1, 3, SIDE, SIDE), torch.uint8)
    assert np.array_equal(np.asarray(picture), pixels[0].permute(1, 2, 0).numpy())
    latents = pipeline(0, output="latent").images
    assert latents.shape == (1, CHANNELS, 2, 2)
    assert torch.equal(pipeline.decode(latents), pixels)


def test_settings_of_a_call_override_the_pipelines_own(pipeline: SemanticFirstPipeline) -> None:
    own = pipeline.sample_latents([0, 1])
    assert torch.equal(own, pipeline.sample_latents([0, 1], guidance="autoguidance", scale=1.5))
    assert not torch.equal(own, pipeline.sample_latents([0, 1], guidance="cfg"))
    torch.testing.assert_close(own, pipeline.sample_latents([0, 1], batch_size=1), atol=1e-5, rtol=1e-5)


def test_encoding_is_what_the_models_say_normalised(pipeline: SemanticFirstPipeline) -> None:
    pixels = torch.randint(0, 256, (3, 3, SIDE, SIDE), dtype=torch.uint8)
    latents = pipeline.encode(pixels)
    assert latents.shape == (3, CHANNELS, 2, 2)
    with torch.no_grad():
        texture = pipeline.texture_vae.encode(pixels / 127.5 - 1)[0]
        tokens = pipeline.encoder(pixels.float() / 255)[0]
        semantic = pipeline.semantic.encode(tokens)[0].transpose(1, 2).unflatten(2, (2, 2))
    expected = (torch.cat([texture, semantic], dim=1) - 0.1) / 0.9
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-5)
    pictures = [Image.fromarray(image) for image in pixels.permute(0, 2, 3, 1).numpy()]
    assert torch.equal(pipeline.encode(pictures), latents)
    drawn = pipeline.encode(pixels, seed=1)
    assert torch.equal(drawn, pipeline.encode(pixels, seed=1))
    assert not torch.equal(drawn, latents)


def test_pictures_of_any_size_and_mode_are_cropped_to_the_pipelines(pipeline: SemanticFirstPipeline) -> None:
    see_through = Image.new("RGBA", (40, 24), (255, 0, 0, 0))
    white = Image.new("L", (SIDE, SIDE), 255)
    torch.testing.assert_close(pipeline.encode(see_through), pipeline.encode([white]))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda pipe: pipe("hexagons"), "no class is called 'hexagons'"),
        (lambda pipe: pipe(7), r"labels: \[7\] will not do; the network knows classes 0 to 2"),
        (lambda pipe: pipe([]), "labels: an empty list will not do"),
        (lambda pipe: pipe(0, noise=torch.zeros(1, 3, 2, 2)), r"noise has shape \(1, 3, 2, 2\)"),
        (lambda pipe: pipe([0, 1], noise=torch.zeros(1, CHANNELS, 2, 2)), "1 images of noise for 2 labels"),
        (lambda pipe: pipe(0, noise=torch.full((1, CHANNELS, 2, 2), torch.nan)), "not finite"),
        (lambda pipe: pipe(0, stepz=3), "stepz: no such setting; did you mean 'steps'"),
        (lambda pipe: pipe(0, steps=-3), "steps: .*greater than 0"),
        (lambda pipe: pipe(0, output="jpeg"), "'jpeg' is not known"),
        (lambda pipe: pipe.encode(torch.zeros(1, 3, 8, 8)), "expected uint8 of shape"),
        (lambda pipe: SemanticFirstPipeline.from_pretrained("no such thing"), "no folder, and no name of a hub"),
        (lambda pipe: SemanticFirstPipeline.from_checkpoints("a.pt", "b.ckpt"), "a.pt does not exist"),
        (lambda pipe: SemanticFirstPipeline.from_checkpoints("a", "b", steps=0), "from_checkpoints: sample.steps"),
    ],
)
def test_mistakes_are_one_sentence(pipeline: SemanticFirstPipeline, call: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        call(pipeline)
    assert "\n" not in str(caught.value)


def test_what_was_not_loaded_is_said(tmp_path: Path) -> None:
    pipeline = SemanticFirstPipeline.from_settings(project(tmp_path))
    with pytest.raises(UserError, match="'autoguidance' needs a guide"):
        pipeline(0, guidance="autoguidance")
    with pytest.raises(UserError, match="no encoder to encode with"):
        pipeline.encode(Image.new("RGB", (SIDE, SIDE)))


def test_saving_never_writes_over_anything(pipeline: SemanticFirstPipeline, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        pipeline.save_pretrained(tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("damage", ["no index", "another class", "a model is missing", "a file is cut"])
def test_a_damaged_pipeline_is_refused(pipeline: SemanticFirstPipeline, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "saved"
    pipeline.save_pretrained(folder)
    index, weights = folder / "model_index.json", folder / "guide" / "ema.safetensors"
    if damage == "no index":
        index.unlink()
    elif damage == "another class":
        index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "StableDiffusionPipeline"}))
    elif damage == "a model is missing":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:-40])
    with pytest.raises(UserError):
        SemanticFirstPipeline.from_pretrained(folder)


def test_a_hub_repository_is_fetched_by_its_name(
    pipeline: SemanticFirstPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.save_pretrained(tmp_path / "cached")
    asked: list[Any] = []

    def snapshot_download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns))
        return str(tmp_path / "cached")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    loaded = SemanticFirstPipeline.from_pretrained("somebody/sfd-emoji", revision="v1")
    assert loaded.class_names == CLASSES
    assert asked == [("somebody/sfd-emoji", "v1", ["*.json", "*.safetensors"])]


def test_a_repository_that_cannot_be_had_is_one_sentence() -> None:
    with pytest.raises(UserError, match="somebody/nothing is no folder here, and could not be fetched"):
        SemanticFirstPipeline.from_pretrained("somebody/nothing")


def test_moving_the_pipeline_moves_all_of_it(pipeline: SemanticFirstPipeline) -> None:
    assert pipeline.to("cpu") is pipeline
    assert pipeline.device.type == "cpu"

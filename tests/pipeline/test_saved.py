"""Saved pipelines: nothing is lost, folders of before still open, what is damaged is refused in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from refusals import refusal, require_refusal
from safetensors.torch import load_file
from tiny_project import CLASSES, SEMANTIC, SIDE, TEXTURE
from trained_pipeline import CHANNELS, project

from sfd_cli.config import Sample, Settings
from sfd_cli.diffusion.conditions import Conditions
from sfd_cli.errors import UserError
from sfd_cli.formats.files import export_model
from sfd_cli.networks.lightning_dit import LightningDiT, LightningDiTConfig
from sfd_cli.networks.texture_vae import TextureVAE, TextureVAEConfig
from sfd_cli.pipeline.layout import INDEX, SCHEDULER, SCHEDULER_CONFIG
from sfd_cli.pipeline.sampler import Sampler
from sfd_cli.pipeline.semantic_first import SemanticFirstPipeline
from sfd_cli.stages import sample as stage
from sfd_cli.weights.models import open_dit

BEFORE = Path(__file__).parent / "saved_by_0.1.0"
"""Written by that version, with latents and images that it made of the classes 0, 1 and 2 by the settings in there."""

NAME = "vit_tiny_patch16_224"


@pytest.fixture
def saved(pipeline: SemanticFirstPipeline, tmp_path: Path) -> Path:
    pipeline.save_pretrained(tmp_path / "saved", samples=0)
    return tmp_path / "saved"


def edited(path: Path, changes: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(folder: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        SemanticFirstPipeline.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_saved_pipeline_is_the_same_pipeline(pipeline: SemanticFirstPipeline, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    pipeline.save_pretrained(folder)
    loaded = SemanticFirstPipeline.from_pretrained(folder, device="cpu")
    assert loaded.class_names == CLASSES
    images = [pipe(["squares", 0], seed=5, output="uint8").images for pipe in (pipeline, loaded)]
    assert torch.equal(*images)
    pixels = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    torch.testing.assert_close(loaded.encode(pixels), pipeline.encode(pixels), atol=1e-6, rtol=0)
    again = tmp_path / "again" / "saved"
    loaded.save_pretrained(again)
    for path in folder.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (again / path.relative_to(folder)).read_bytes()


def test_the_folder_is_laid_out_as_diffusers_lays_pipelines_out(saved: Path) -> None:
    networks = ("transformer", "guide", "vae", "semantic", "encoder")
    assert {str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file()} == {
        "README.md",
        "pipeline.py",
        INDEX,
        f"{SCHEDULER}/{SCHEDULER_CONFIG}",
        *(f"{name}/config.json" for name in networks),
        *(f"{name}/diffusion_pytorch_model.safetensors" for name in networks),
    }
    index = json.loads((saved / INDEX).read_text())
    assert {name: index[name][1] for name in ("transformer", "guide", "vae", "scheduler")} == {
        "transformer": "SemanticFirstTransformer2DModel",
        "guide": "SemanticFirstTransformer2DModel",
        "vae": "AutoencoderKL",
        "scheduler": "SemanticFirstScheduler",
    }
    scheduler = json.loads((saved / SCHEDULER / SCHEDULER_CONFIG).read_text())
    assert (scheduler["solver"], scheduler["steps"], scheduler["delta_t"]) == ("euler", 4, 0.3)
    assert not set(scheduler) & set(index["sample"])


@pytest.mark.parametrize("fold", [1, 2])
def test_the_vae_is_one_that_diffusers_opens(tmp_path: Path, fold: int) -> None:
    pipeline = with_vae(tmp_path, TextureVAEConfig(TEXTURE, (32, 32, 64)[: 4 - fold], 2, (1,), space_to_depth=fold))
    pipeline.save_pretrained(tmp_path / "saved", samples=0)
    theirs = AutoencoderKL.from_pretrained(tmp_path / "saved" / "vae")
    assert theirs.config.scaling_factor == 1.0
    raw = torch.randn(2, TEXTURE, 2 * fold, 2 * fold, generator=torch.Generator().manual_seed(0))
    folded = torch.nn.functional.pixel_unshuffle(raw, fold)
    with torch.no_grad():
        torch.testing.assert_close(theirs.decode(raw).sample, pipeline.texture_vae.decode(folded))
    loaded = SemanticFirstPipeline.from_pretrained(tmp_path / "saved", device="cpu")
    assert loaded.texture_vae.config == pipeline.texture_vae.config
    assert torch.equal(loaded(0, output="uint8").images, pipeline(0, output="uint8").images)


def with_vae(root: Path, config: TextureVAEConfig) -> SemanticFirstPipeline:
    """A pipeline whose texture latents are of this VAE, which is random."""
    torch.manual_seed(0)
    vae = TextureVAE(config).eval().requires_grad_(False)
    channels = vae.latent_channels + SEMANTIC
    network = LightningDiT(LightningDiTConfig(2, channels, 1, SEMANTIC, width=16, depth=1, heads=2))
    for parameter in network.requires_grad_(False).parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    space = network.config.space.scaled([0.0] * channels, [1.0] * channels)
    sample = Sample(steps=3, delta_t=0.1)
    return SemanticFirstPipeline(Sampler(network, sample, space, Conditions(("all",)), texture_vae=vae))


def test_a_pipeline_saved_before_opens_and_makes_the_same_images(tmp_path: Path) -> None:
    expected = load_file(BEFORE / "expected.safetensors")
    old = SemanticFirstPipeline.from_pretrained(BEFORE, device="cpu")
    old.save_pretrained(tmp_path / "new", samples=0)
    for pipeline in (old, SemanticFirstPipeline.from_pretrained(tmp_path / "new", device="cpu")):
        torch.testing.assert_close(pipeline.sample_latents([0, 1, 2]), expected["latents"], atol=1e-5, rtol=1e-5)
        images = pipeline([0, 1, 2], output="uint8").images
        assert (images.int() - expected["images"].int()).abs().max() <= 1
        with torch.no_grad():
            torch.testing.assert_close(pipeline.semantic.encode(expected["tokens"])[0], expected["semantic"])
        assert pipeline.class_names == CLASSES
    plain = SemanticFirstPipeline.from_pretrained(BEFORE, device="cpu")
    plain.dit.position -= 1e-2  # its positions are an imported transformer's own
    assert not torch.allclose(plain.sample_latents([0, 1, 2]), expected["latents"], atol=1e-4)


def test_positions_of_an_imported_transformer_are_saved_too(tmp_path: Path, settings: Settings) -> None:
    pipeline = SemanticFirstPipeline.from_settings(settings)
    pipeline.dit.position += 1e-3
    pipeline.save_pretrained(tmp_path / "saved", samples=0)
    loaded = SemanticFirstPipeline.from_pretrained(tmp_path / "saved", device="cpu")
    assert torch.equal(loaded.dit.position, pipeline.dit.position)


def test_a_component_is_a_model_wherever_one_is_asked_for(settings: Settings, saved: Path, tmp_path: Path) -> None:
    """`sfd sample` and `sfd weights export` take it as the folder it was saved from."""
    parts = {"dit": saved / "transformer", "guide": saved / "guide"}
    chosen = settings.model_copy(update={"paths": settings.paths.model_copy(update=parts)})
    for given, place in ((settings, "before"), (chosen, "after")):
        stage.run(given, latents_out=tmp_path / f"{place}.npy")
    assert (tmp_path / "before.npy").read_bytes() == (tmp_path / "after.npy").read_bytes()
    for folder, place in ((settings.paths.dit, "before.pt"), (saved / "transformer", "after.pt")):
        export_model(folder, tmp_path / place)
    before, after = (torch.load(tmp_path / place)["ema"] for place in ("before.pt", "after.pt"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert open_dit(chosen).facts["classes"] == CLASSES


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_transformers_are_held_in_the_dtype_asked_for(
    pipeline: SemanticFirstPipeline, saved: Path, dtype: torch.dtype
) -> None:
    loaded = SemanticFirstPipeline.from_pretrained(saved, device="cpu", torch_dtype=dtype)
    networks = (loaded.dit, loaded.guide, loaded.texture_vae, loaded.semantic, loaded.encoder)
    held = [{parameter.dtype for parameter in network.parameters()} for network in networks]
    assert held == [{dtype}, {dtype}, *[{torch.float32}] * 3]
    exact, latents = (pipe.sample_latents([0, 1, 2]) for pipe in (pipeline, loaded))
    assert latents.dtype == torch.float32
    error = ((latents - exact).norm() / exact.norm()).item()
    assert 0 < error < 2e-2 if dtype != torch.float32 else error == 0
    assert loaded([0], output="uint8").images.dtype == torch.uint8


def test_other_loaders_take_a_dtype_too_and_none_takes_what_is_no_dtype_of_weights(
    settings: Settings, saved: Path
) -> None:
    half = torch.bfloat16
    for loaded in (
        SemanticFirstPipeline.from_settings(settings, torch_dtype=half),
        SemanticFirstPipeline.from_checkpoints(settings.paths.dit, torch_dtype=half, device="cpu"),
    ):
        assert loaded.dit.final_linear.weight.dtype == half
    for wrong in (torch.int64, "bfloat16", torch.float64):
        with refusal("torch_dtype", repr(wrong), "torch.bfloat16"):
            SemanticFirstPipeline.from_pretrained(saved, torch_dtype=wrong)


def test_saving_never_writes_over_anything(pipeline: SemanticFirstPipeline, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    for taken in (tmp_path / "full", tmp_path / "full" / "thesis.txt"):
        with refusal(taken):
            pipeline.save_pretrained(taken)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "damage", ["no index", "another class", "a model is missing", "a folder is missing", "a file is cut"]
)
def test_a_damaged_pipeline_is_refused(saved: Path, damage: str) -> None:
    index, weights = saved / INDEX, saved / "guide" / "diffusion_pytorch_model.safetensors"
    if damage == "no index":
        index.unlink()
    elif damage == "another class":
        edited(index, {"_class_name": "StableDiffusionPipeline"})
    elif damage == "a model is missing":
        weights.unlink()
    elif damage == "a folder is missing":
        shutil.rmtree(saved / "vae")
    else:
        weights.write_bytes(weights.read_bytes()[:-40])
    refused(saved)


@pytest.mark.parametrize(
    ("changes", "subject", "named"),
    [
        ({"transformer": None}, INDEX, ("transformer",)),
        ({"transformer": [None, None]}, INDEX, ("transformer",)),
        ({"guide": "models/guide"}, INDEX, ("guide", "'models/guide'")),
        ({"vae": []}, INDEX, ("vae", "[]")),
        ({"sample": [1]}, "sample", ("[1]",)),
        ({"sample": None}, "sample", ("None",)),
        ({"sample": {"stepz": 3}}, "sample.stepz", ("'steps'",)),
        ({"sample": {"scale": "much"}}, "sample.scale", ("'much'",)),
        ({"sample": {"num_images": 3}}, "sample.num_images", ()),
        ({"_encoder": {}}, INDEX, ("encoder", "name, image_size, tiles")),
        ({"_encoder": [1]}, INDEX, ("encoder", "name, image_size, tiles")),
        ({"_encoder": {"name": NAME, "image_size": 32, "tiles": 1, "weights": "random"}}, INDEX, ("encoder", "random")),
        ({"_encoder": {"name": NAME, "image_size": "big", "tiles": 1}}, f"{INDEX}: encoder.image_size", ("'big'",)),
    ],
)
def test_a_damaged_index_is_one_sentence(
    saved: Path, changes: dict[str, Any], subject: str, named: tuple[str, ...]
) -> None:
    """A subject that is no setting is a path in the folder."""
    edited(saved / INDEX, changes)
    place = subject if subject.startswith("sample") else saved / subject
    require_refusal(refused(saved), place, *named)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"_encoder": {"name": NAME, "image_size": 33, "tiles": 1}}, "encoder.image_size"),
        ({"_encoder": {"name": "dinov2_vits14", "image_size": 28, "tiles": 1}}, "vit_tiny"),
    ],
)
def test_an_index_of_another_encoder_is_refused(saved: Path, changes: dict[str, Any], named: str) -> None:
    edited(saved / INDEX, changes)
    assert named in str(refused(saved))


@pytest.mark.parametrize(
    ("content", "subject"),
    [("[1]", None), ("{", None), ('{"solver": "eulr"}', "sample.solver"), ('{"step": 3}', "sample.step")],
)
def test_a_damaged_scheduler_is_one_sentence(saved: Path, content: str, subject: str | None) -> None:
    path = saved / SCHEDULER / SCHEDULER_CONFIG
    path.write_text(content)
    require_refusal(refused(saved), subject or path)
    path.unlink()
    require_refusal(refused(saved), path)


@pytest.mark.parametrize(
    ("changes", "subject", "named"),
    [
        ({"components": None}, INDEX, ("None", "dit")),
        ({"components": "dit"}, INDEX, ("'dit'", "texture_vae")),
        ({"components": ["guide"]}, INDEX, ("['guide']", "dit")),
        ({"components": ["dit", "unet"]}, INDEX, ("unet",)),
        ({"components": ["dit", ["guide"]]}, INDEX, ("['guide']",)),
        ({"components": ["dit", "texture_vae", "encoder"]}, "", ("encoder",)),
        ({"sample": [1]}, "sample", ("[1]",)),
        ({"sample": {"stepz": 3}}, "sample.stepz", ("'steps'",)),
    ],
)
def test_a_damaged_index_of_before_is_one_sentence(
    tmp_path: Path, changes: dict[str, Any], subject: str, named: tuple[str, ...]
) -> None:
    folder = tmp_path / "old"
    shutil.copytree(BEFORE, folder)
    edited(folder / INDEX, changes)
    place = subject if subject.startswith("sample") else folder / subject
    require_refusal(refused(folder), place, *named)


def test_a_hub_repository_is_fetched_by_its_name(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[Any] = []

    def snapshot_download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        requests.append((name, revision, allow_patterns))
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    loaded = SemanticFirstPipeline.from_pretrained("somebody/sfd-emoji", revision="v1")
    assert loaded.class_names == CLASSES
    assert requests == [("somebody/sfd-emoji", "v1", ["*.json", "*.safetensors"])]


def test_a_repository_that_cannot_be_had_is_one_sentence() -> None:
    with refusal("somebody/nothing"):
        SemanticFirstPipeline.from_pretrained("somebody/nothing")


def test_a_pipeline_without_extras_is_saved_without_them(tmp_path: Path) -> None:
    pipeline = SemanticFirstPipeline.from_settings(project(tmp_path))
    pipeline.save_pretrained(tmp_path / "saved", samples=0)
    index = json.loads((tmp_path / "saved" / INDEX).read_text())
    assert index["guide"] == [None, None]
    assert not {"_semantic", "_encoder"} & set(index)
    assert sorted(path.name for path in (tmp_path / "saved").iterdir() if path.is_dir()) == [
        "scheduler",
        "transformer",
        "vae",
    ]
    loaded = SemanticFirstPipeline.from_pretrained(tmp_path / "saved", device="cpu")
    assert loaded.guide is None
    assert loaded.sample_latents(0).shape == (1, CHANNELS, 2, 2)

"""Saved pipelines by the installed diffusers, from a local folder: the same images under diffusers' names."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.utils import dynamic_modules_utils
from PIL import Image
from refusals import refusal
from tiny_project import CLASSES, SIDE
from trained_pipeline import CHANNELS, project

from sfd_cli.networks.texture_pca import TexturePCA, TexturePCAConfig
from sfd_cli.pipeline.diffusers_models import SemanticFirstScheduler, SemanticFirstTransformer2DModel
from sfd_cli.pipeline.diffusers_pipeline import SemanticFirstDiffusionPipeline
from sfd_cli.pipeline.layout import INDEX, MODELS_MODULE, SOLVING
from sfd_cli.pipeline.semantic_first import SemanticFirstPipeline


@pytest.fixture(autouse=True)
def _code_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where diffusers copies the code of pipelines to."""
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.fixture
def saved(pipeline: SemanticFirstPipeline, tmp_path: Path) -> Path:
    pipeline.save_pretrained(tmp_path / "saved", samples=0)
    return tmp_path / "saved"


def opened(folder: Path, **arguments: Any) -> Any:
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **arguments)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("custom", ["pipeline", "the folder", None])
def test_diffusers_opens_the_folder_and_gets_the_same_images(
    pipeline: SemanticFirstPipeline, saved: Path, custom: str | None
) -> None:
    named = {} if custom is None else {"custom_pipeline": str(saved) if custom == "the folder" else custom}
    pipe = opened(saved, **named)
    assert {name: type(part).__name__ for name, part in pipe.components.items()} == {
        "transformer": "SemanticFirstTransformer2DModel",
        "guide": "SemanticFirstTransformer2DModel",
        "vae": "AutoencoderKL",
        "scheduler": "SemanticFirstScheduler",
    }
    expected = pipeline(["squares", 0], seed=5).images
    images = pipe(class_labels=["squares", 0], seed=5).images
    assert all(np.array_equal(np.asarray(one), np.asarray(other)) for one, other in zip(images, expected, strict=True))
    assert np.array_equal(np.asarray(pipe([0]).images[0]), np.asarray(pipeline([0]).images[0])), "by the seed"


def test_diffusers_is_not_told_anything_that_it_does_not_expect(
    saved: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diffusers.utils.logging.get_logger("diffusers"), "propagate", True)
    opened(saved, custom_pipeline="pipeline")
    said = [record.getMessage() for record in caplog.records if record.name.startswith("diffusers")]
    unwanted = [text for text in said if "accelerate" not in text and "trust" not in text]
    assert unwanted == []


def test_a_pipeline_without_guide_vae_and_of_principal_components_opens_too(tmp_path: Path) -> None:
    settings = project(tmp_path)
    plain = SemanticFirstPipeline.from_checkpoints(settings.paths.dit, device="cpu")
    plain.save_pretrained(tmp_path / "plain")
    pipe = opened(tmp_path / "plain")
    assert (pipe.vae, pipe.guide) == (None, None)
    assert torch.equal(pipe(1, output_type="latent").images, plain.sample_latents(1))
    with refusal("texture_vae"):
        pipe(1)

    whole = SemanticFirstPipeline.from_settings(settings)
    components = TexturePCA(TexturePCAConfig(8, 4)).eval()
    object.__setattr__(whole._sampler, "texture_vae", components)
    whole.save_pretrained(tmp_path / "pca", samples=0)
    pipe = opened(tmp_path / "pca")
    assert type(pipe.vae).__name__ == "SemanticFirstTextureCompressor"
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(pipe.vae.encode(images)[0], components.encode(images)[0])
    torch.testing.assert_close(pipe.vae.decode(torch.ones(1, 4, 2, 2)), components.decode(torch.ones(1, 4, 2, 2)))
    expected = whole([0, 1], output="uint8").images
    assert torch.equal((pipe([0, 1], output_type="pt").images * 255).round().to(torch.uint8), expected)


def test_arguments_have_diffusers_names(pipeline: SemanticFirstPipeline, saved: Path) -> None:
    pipe = opened(saved)
    noise = torch.randn(2, CHANNELS, 2, 2, generator=torch.Generator().manual_seed(1))
    for theirs, ours in (
        ({"num_inference_steps": 7}, {"steps": 7}),
        ({"guidance_scale": 2.5}, {"scale": 2.5}),
        ({"latents": noise}, {"noise": noise}),
        ({"generator": pipeline.generators(3, 2)}, {"seed": 3}),
        ({"generator": torch.Generator().manual_seed(1)}, {"noise": noise}),
        ({"solver": "heun", "delta_t": 0.1}, {"solver": "heun", "delta_t": 0.1}),
    ):
        made = pipe([0, 1], output_type="latent", return_dict=False, **theirs)[0]
        assert torch.equal(made, pipeline.sample_latents([0, 1], **ours)), theirs


def test_a_guidance_scale_guides_where_nothing_else_does(tmp_path: Path) -> None:
    ours = SemanticFirstPipeline.from_settings(project(tmp_path, guidance="none"))
    ours.save_pretrained(tmp_path / "saved", samples=0)
    pipe = opened(tmp_path / "saved")
    guided = pipe([0, 1], guidance_scale=3.0, output_type="latent").images
    assert torch.equal(guided, ours.sample_latents([0, 1], guidance="cfg", scale=3.0))
    plain = ours.sample_latents([0, 1])
    assert not torch.allclose(guided, plain, atol=1e-3)
    assert torch.equal(pipe([0, 1], guidance_scale=1.0, output_type="latent").images, plain)


def test_images_come_in_diffusers_kinds(pipeline: SemanticFirstPipeline, saved: Path) -> None:
    pipe = opened(saved)
    pixels = pipeline([0, 1], output="uint8").images
    pil, arrays, tensors = (pipe([0, 1], output_type=kind).images for kind in ("pil", "np", "pt"))
    assert isinstance(pil[0], Image.Image)
    assert pil[0].size == (SIDE, SIDE)
    assert (arrays.shape, arrays.dtype) == ((2, SIDE, SIDE, 3), np.float32)
    assert np.allclose(arrays * 255, pixels.permute(0, 2, 3, 1), atol=1e-4)
    assert torch.allclose(tensors * 255, pixels.float(), atol=1e-4)
    with refusal("output_type", "'jpeg'", "pil"):
        pipe(0, output_type="jpeg")
    assert pipe.get_label_ids(["triangles", "circles"]) == [2, 0]
    with refusal("labels", "'hexagons'"):
        pipe.get_label_ids("hexagons")


def test_the_callback_gets_diffusers_pipeline_and_the_bar_is_diffusers_own(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = opened(saved)
    calls: list[tuple[Any, int, float]] = []

    def look(self: Any, step: int, progress: float, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        calls.append((self, step, progress))
        return tensors

    capsys.readouterr()  # diffusers' own bar, of loading
    pipe(0, callback_on_step_end=look, callback_on_step_end_tensor_inputs=["latents"])
    assert [step for _, step, _ in calls] == [0, 1, 2, 3]
    assert all(self is pipe for self, _, _ in calls)
    assert capsys.readouterr().err == ""
    pipe.set_progress_bar_config(desc="emoji")
    pipe(0)
    assert "emoji: 100%" in capsys.readouterr().err


def test_weights_in_half_precision_are_diffusers_choice(pipeline: SemanticFirstPipeline, saved: Path) -> None:
    pipe = opened(saved, torch_dtype=torch.bfloat16)
    assert {
        parameter.dtype for part in (pipe.transformer, pipe.guide, pipe.vae) for parameter in part.parameters()
    } == {torch.bfloat16}
    exact = pipeline.sample_latents([0, 1, 2])
    latents = pipe([0, 1, 2], output_type="latent").images
    assert 0 < (latents - exact).norm() / exact.norm() < 2e-2
    difference = pipe([0, 1, 2], output_type="pt").images * 255 - pipeline([0, 1, 2], output="uint8").images
    assert 0 < difference.abs().mean() < 4


def test_the_scheduler_is_exchanged_as_in_diffusers(pipeline: SemanticFirstPipeline, saved: Path) -> None:
    pipe = opened(saved)
    pipe.scheduler = SemanticFirstScheduler.from_config(pipe.scheduler.config, solver="heun", delta_t=0.1)
    made = pipe([0, 1], output_type="latent").images
    assert torch.equal(made, pipeline.sample_latents([0, 1], solver="heun", delta_t=0.1))
    with refusal("sample.solver", "'huen'", "heun"):
        SemanticFirstScheduler(solver="huen")
    arguments = inspect.signature(SemanticFirstScheduler.__init__).parameters
    assert list(arguments)[1:] == list(SOLVING)


def test_the_transformer_by_itself_takes_the_names_of_diffusers(pipeline: SemanticFirstPipeline, saved: Path) -> None:
    for place in ((saved, "transformer"), (saved / "transformer", "")):
        transformer = SemanticFirstTransformer2DModel.from_pretrained(place[0], subfolder=place[1])
        x, semantic, texture = torch.randn(2, CHANNELS, 2, 2), torch.tensor([0.9, 0.5]), torch.tensor([0.2, 0.1])
        with torch.no_grad():
            velocity = transformer(x, timestep_sem=semantic, timestep_tex=texture, class_labels=torch.tensor([0, 3]))
            expected = pipeline.dit(x, texture, semantic, torch.tensor([0, 3]))
        assert torch.equal(velocity.sample, expected)
        assert transformer.config.semantic_channels == 3
        assert transformer.config.classes == CLASSES
        assert transformer.config.delta_t == 0.3
    half = SemanticFirstTransformer2DModel.from_pretrained(saved, subfolder="transformer", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    with refusal(saved / "semantic", "SemanticVAE", "LightningDiT"):
        SemanticFirstTransformer2DModel.from_pretrained(saved, subfolder="semantic")


def test_what_diffusers_opened_it_saves_again(saved: Path, tmp_path: Path) -> None:
    opened(saved).save_pretrained(tmp_path / "again", samples=0, licence="mit")
    both = [json.loads((folder / INDEX).read_text()) for folder in (saved, tmp_path / "again")]
    assert {key: value for key, value in both[0].items() if key not in ("_semantic", "_encoder")} == both[1]
    for name in ("transformer", "guide", "vae", "scheduler"):
        for path in (saved / name).iterdir():
            assert path.read_bytes() == (tmp_path / "again" / name / path.name).read_bytes()
    assert "license: mit" in (tmp_path / "again" / "README.md").read_text()


def test_without_leave_diffusers_runs_no_code_of_the_folder(saved: Path) -> None:
    with pytest.raises(ValueError, match="trust_remote_code"):
        diffusers.DiffusionPipeline.from_pretrained(saved, custom_pipeline="pipeline")


def test_an_autoencoder_of_other_latents_is_refused(saved: Path) -> None:
    pipe = opened(saved)
    pipe.vae = AutoencoderKL(
        latent_channels=5,
        block_out_channels=(32,),
        norm_num_groups=32,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
    )
    with refusal("paths.texture_vae", "5 texture channels", "makes 4"):
        pipe(0)


def test_the_index_names_classes_that_are_there(saved: Path) -> None:
    index = json.loads((saved / INDEX).read_text())
    module = importlib.import_module(MODELS_MODULE)
    for name in ("transformer", "guide", "scheduler"):
        assert index[name][0] == MODELS_MODULE
        assert hasattr(module, index[name][1])
    assert index["_class_name"] == ["pipeline", SemanticFirstDiffusionPipeline.__name__]

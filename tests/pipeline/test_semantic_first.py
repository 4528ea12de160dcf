"""`SemanticFirstPipeline`: the same numbers as the stages, errors in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from reference_files import part
from refusals import refusal, require_refusal
from tiny_project import SEMANTIC, SIDE
from trained_pipeline import CHANNELS, WIDTH, project

from sfd_cli.config import Settings
from sfd_cli.devices import float32_products
from sfd_cli.errors import UserError
from sfd_cli.formats.ldm import texture_vae_to_ldm
from sfd_cli.formats.reference_semantic_vae import semantic_vae_to_reference
from sfd_cli.networks.lightning_dit import LightningDiT
from sfd_cli.networks.semantic_vae import SemanticVAE, SemanticVAEConfig
from sfd_cli.networks.texture_vae import TextureVAE, TextureVAEConfig
from sfd_cli.pipeline.semantic_first import SemanticFirstPipeline
from sfd_cli.stages import sample as stage


@pytest.mark.parametrize("sample", [{}, {"batch_size": 5}, {"solver": "dopri5"}, {"solver": "dopri5", "batch_size": 5}])
def test_a_call_gives_the_images_of_sfd_sample(
    settings: Settings, pipeline: SemanticFirstPipeline, sample: dict[str, Any]
) -> None:
    chosen = settings.sample.model_copy(update={"num_images": 20, **sample})
    stage.run(settings.model_copy(update={"sample": chosen}))
    images = pipeline([index % 3 for index in range(20)], **sample).images
    written = [np.asarray(Image.open(settings.paths.samples / f"{index:06d}.png")) for index in range(20)]
    difference = np.abs(np.stack([np.asarray(image) for image in images]).astype(int) - np.stack(written))
    assert difference.max() <= 1, "but for the rounding of a grey level"
    assert (difference > 0).mean() < 1e-3


@pytest.mark.parametrize("given", [False, True])
def test_latents_are_those_of_sfd_sample_bit_for_bit_under_dopri5(
    settings: Settings, pipeline: SemanticFirstPipeline, tmp_path: Path, given: bool
) -> None:
    """The last group, of 4 images, is filled up in the same way, so every step of the solver is the same."""
    labels = np.array([2, 0, 0, 1] * 5)
    noise = np.random.default_rng(0).standard_normal((20, CHANNELS, 2, 2)).astype(np.float32) if given else None
    files = {"labels": tmp_path / "y.npy"} | ({"noise": tmp_path / "z.npy"} if given else {})
    for name, path in files.items():
        np.save(path, {"labels": labels, "noise": noise}[name])
    chosen = settings.sample.model_copy(update={"solver": "dopri5", "batch_size": 7})
    stage.run(settings.model_copy(update={"sample": chosen}), latents_out=tmp_path / "x.npy", **files)
    for batch_size in (1, 64):
        latents = pipeline.sample_latents(labels, noise=noise, solver="dopri5", batch_size=batch_size)
        assert np.array_equal(latents.numpy(), np.load(tmp_path / "x.npy"))


def save_published(folder: Path) -> dict[str, Any]:
    """A published-style checkpoint, an LDM autoencoder, and the section `foreign` of their statistics."""
    torch.save({"ema": part("dit_sfd", "model.")}, folder / "4000000.pt")
    torch.manual_seed(0)
    vae = TextureVAE(TextureVAEConfig(8, (32, 32), norm_groups=32))
    torch.save({"state_dict": texture_vae_to_ldm(vae.config, vae.state_dict())}, folder / "vae.ckpt")
    for name, channels in (("texture", 8), ("semantic", 4)):
        shape = (1, channels, 1, 1)
        torch.save({"mean": torch.full(shape, 0.5), "std": torch.full(shape, 2.0)}, folder / f"{name}.pt")
    return {f"{name}_statistics": str(folder / f"{name}.pt") for name in ("texture", "semantic")}


REFERENCE_SOLVER = {"solver": "euler", "steps": 20, "time_grid": "one-span"}


def test_given_noise_and_labels_give_the_references_sample(tmp_path: Path) -> None:
    """Published files loaded as they are."""
    given, hints = part("dit_sfd", "sample."), save_published(tmp_path)
    files = (tmp_path / "4000000.pt", tmp_path / "vae.ckpt")
    pipeline = SemanticFirstPipeline.from_checkpoints(*files, sections={"foreign": hints}, device="cpu", seed=3)
    vae = pipeline.texture_vae
    latents = pipeline.sample_latents(given["y"], noise=given["noise"], **REFERENCE_SOLVER)
    torch.testing.assert_close(latents, given["euler21"], atol=1e-4, rtol=0)
    with torch.no_grad():
        decoded = (vae.decode(latents[:, :8] * 2 + 0.5).clamp(-1, 1) + 1) * 127.5
    assert (pipeline.decode(latents).float() - decoded).abs().max() <= 0.51


@pytest.mark.parametrize("name", ["sfd", "plain"])
def test_a_checkpoint_alone_gives_latents(tmp_path: Path, name: str) -> None:
    """Hints are needed for what no tensor shows, and no more; neither texture VAE nor statistics are needed."""
    given, file = part(f"dit_{name}", "sample."), tmp_path / "dit.pt"
    torch.save({"ema": part(f"dit_{name}", "model.")}, file)
    hints, delta_t = {"sfd": ({"semantic_channels": 4}, 0.3), "plain": ({"heads": 4}, 0.0)}[name]
    sections = {"foreign": hints}
    pipeline = SemanticFirstPipeline.from_checkpoints(file, sections=sections, device="cpu", delta_t=delta_t)
    latents = pipeline(given["y"], noise=given["noise"].numpy(), output="latent", **REFERENCE_SOLVER).images
    torch.testing.assert_close(latents, given["euler21"], atol=1e-4, rtol=0)
    for ask in (
        lambda: pipeline(given["y"]),
        lambda: pipeline.decode(latents),
        lambda: pipeline.encode(Image.new("RGB", (8, 8))),
        lambda: pipeline.image_size,
    ):
        with refusal("texture_vae"):
            ask()
    pipeline.save_pretrained(tmp_path / "saved")
    loaded = SemanticFirstPipeline.from_pretrained(tmp_path / "saved", device="cpu")
    assert torch.equal(loaded.sample_latents(given["y"], noise=given["noise"], **REFERENCE_SOLVER), latents)


def test_checkpoints_of_the_reference_encode_too(tmp_path: Path) -> None:
    hints = save_published(tmp_path)
    config = SemanticVAEConfig(WIDTH, 4, width=16, depth=1, heads=2)
    torch.manual_seed(1)
    semantic = SemanticVAE(config)
    torch.save({"model_state_dict": semantic_vae_to_reference(config, semantic.state_dict())}, tmp_path / "semvae.pt")
    sections = {
        "foreign": hints,
        "semvae": {"channels": 4, "width": 16, "depth": 1, "heads": 2},
        "encoder": {"name": "vit_tiny_patch16_224", "weights": "random", "image_size": 64},
    }
    files = [tmp_path / name for name in ("4000000.pt", "vae.ckpt")]
    pipeline = SemanticFirstPipeline.from_checkpoints(
        *files, semvae=tmp_path / "semvae.pt", sections=sections, device="cpu"
    )
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    latents = pipeline.encode(pixels)
    with torch.no_grad():
        tokens = semantic.eval().encode(pipeline.encoder(pixels.float() / 255)[0])[0]
        texture = pipeline.texture_vae.encode(pixels / 127.5 - 1)[0]
    expected = torch.cat([texture, tokens.transpose(1, 2).unflatten(2, (4, 4))], dim=1)
    torch.testing.assert_close(latents, (expected - 0.5) / 2, atol=1e-5, rtol=1e-5)

    def load(**changes: Any) -> SemanticFirstPipeline:
        return SemanticFirstPipeline.from_checkpoints(*files, **changes, device="cpu")

    semvae, encoder = {"semvae": tmp_path / "semvae.pt"}, sections["encoder"]
    for changes, subject, named in (
        (semvae, "semvae", ("'encoder'",)),
        ({"sections": {"foreign": hints, "encoder": encoder}}, "semvae", ("'encoder'",)),
        ({"sections": {"foreign": hints, "semvae": {}}}, "semvae", ("'encoder'",)),
        ({"sections": {"images": {"size": 8}}}, "sections", ("images", "foreign, semvae, encoder")),
        (semvae | {"sections": sections | {"encoder": {"nam": 1}}}, "encoder.nam", ("'name'",)),
        (semvae | {"sections": sections | {"encoder": []}}, "encoder", ("[]",)),
        (semvae | {"sections": sections | {"semvae": {"depth": 0}}}, "semvae.depth", ("found 0",)),
        (semvae | {"sections": sections | {"encoder": encoder | {"image_size": 32}}}, "encoder", ("2 instead of 4",)),
        ({"num_images": 3}, "sample.num_images", ("label",)),
        ({"sections": {"foreign": {"statistics": 1}}}, "foreign.statistics", ()),
        (semvae | {"sections": sections | {"semvae": {"heads": 3}}}, semvae["semvae"], ("3 heads", "width 16")),
    ):
        with refusal(subject, *named):
            load(**changes)
    with refusal(files[0], "model.safetensors", "weights present: ema"):
        load(weights="model", sections={"foreign": hints})


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
    ("call", "subject", "named"),
    [
        (lambda pipe: pipe("hexagons"), "labels", ("'hexagons'", "class_names")),
        (lambda pipe: pipe(True), "labels", ("True",)),
        (lambda pipe: pipe([0, 1.0]), "labels", ("1.0",)),
        (lambda pipe: pipe(np.zeros(2)), "labels", ("0.0",)),
        (lambda pipe: pipe([[0]]), "labels", ("[0]",)),
        (lambda pipe: pipe(None), "labels", ("None",)),
        (lambda pipe: pipe(2**70), "labels", (2**70, "0 to 2")),
        (lambda pipe: pipe(7), "labels", ("[7]", "0 to 2")),
        (lambda pipe: pipe([]), "labels", ("empty", "0 to 2")),
        (lambda pipe: pipe(0, noise=torch.zeros(1, 3, 2, 2)), "noise", ("(1, 3, 2, 2)", "(N, 7, 2, 2)")),
        (lambda pipe: pipe(0, noise=np.zeros((1, 3, 2))), "noise", ("float64", "(1, 3, 2)")),
        (lambda pipe: pipe(0, noise=torch.zeros(1, CHANNELS, 2, 2).long()), "noise", ("int64",)),
        (lambda pipe: pipe(0, noise=[0.0]), "noise", ("list",)),
        (lambda pipe: pipe([0, 1], noise=torch.zeros(1, CHANNELS, 2, 2)), "noise", ("1 images", "2 labels")),
        (lambda pipe: pipe(0, noise=torch.full((1, CHANNELS, 2, 2), torch.nan)), "noise", ("image 0", "not finite")),
        (lambda pipe: pipe(0, generator=3), "generator", ("int", "torch.Generator")),
        (lambda pipe: pipe([0, 1], generator=pipe.generators(0, 3)), "generator", ("3 generators", "2 labels")),
        (lambda pipe: pipe(0, generator=torch.Generator(), seed=3), "generator", ("seed",)),
        (lambda pipe: pipe(0, generator=torch.Generator(), solver="euler_maruyama"), "generator", ("seed", "step")),
        (lambda pipe: pipe(0, class_labels="random"), "sample.class_labels", ("labels",)),
        (lambda pipe: pipe(0, generator=torch.Generator(), noise=np.zeros((1, 7, 2, 2))), "generator", ("noise",)),
        (lambda pipe: pipe(0, num_inference_steps=3), "sample.num_inference_steps", ("sample.steps",)),
        (lambda pipe: pipe(0, guidance_scale=3), "sample.guidance_scale", ("sample.scale",)),
        (lambda pipe: pipe(0, stepz=3), "sample.stepz", ("'steps'",)),
        (lambda pipe: pipe(0, steps=-3), "sample.steps", ("-3",)),
        (lambda pipe: pipe(0, weights="model"), "sample.weights", ()),
        (lambda pipe: pipe(0, compile=True), "sample.compile", ()),
        (lambda pipe: pipe(0, num_images=3), "sample.num_images", ("label",)),
        (lambda pipe: pipe(0, classes=[1]), "sample.classes", ("labels",)),
        (lambda pipe: pipe.decode(torch.zeros(1, 3, 2, 2)), "latents", ("(1, 3, 2, 2)", "(n, 7, 2, 2)")),
        (lambda pipe: pipe.encode(torch.zeros(1, 3, 8, 8)), "images", ("float32", "uint8")),
        (lambda pipe: pipe.encode([]), "images", ()),
        (lambda pipe: pipe.encode(torch.zeros(0, 3, SIDE, SIDE, dtype=torch.uint8)), "images", ()),
        (lambda pipe: pipe.encode("cat.png"), "images", ("str", "PIL.Image.open")),
        (lambda pipe: pipe.encode([np.zeros((8, 8, 3), np.uint8)]), "images", ("ndarray", "PIL.Image.open")),
        (lambda pipe: SemanticFirstPipeline.from_pretrained("no such thing"), "no such thing", ("owner/name",)),
        (lambda pipe: SemanticFirstPipeline.from_checkpoints("a", "b", steps=0), "sample.steps", ("0",)),
    ],
)
def test_mistakes_are_one_sentence(
    pipeline: SemanticFirstPipeline, call: Any, subject: str, named: tuple[Any, ...]
) -> None:
    with pytest.raises(UserError) as caught:
        call(pipeline)
    require_refusal(caught.value, subject, *named)
    assert "\n" not in str(caught.value)


def test_a_device_or_a_file_that_is_not_there_is_named(pipeline: SemanticFirstPipeline) -> None:
    with refusal("runtime.device", "cuda:99"):
        pipeline.to("cuda:99")
    with pytest.raises(UserError) as caught:
        SemanticFirstPipeline.from_checkpoints("a.pt", "b.ckpt")
    assert "a.pt" in caught.value.subject


def test_an_unknown_output_is_refused_before_anything_is_sampled(
    pipeline: SemanticFirstPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LightningDiT, "forward", None)
    with refusal("output", "'jpeg'", "pil"):
        pipeline(0, output="jpeg")  # type: ignore[arg-type]


def test_labels_and_noise_may_be_arrays_of_numpy_and_torch(pipeline: SemanticFirstPipeline) -> None:
    noise = torch.randn(2, CHANNELS, 2, 2, dtype=torch.float64)
    expected = pipeline.sample_latents([2, 0], noise=noise)
    wholes = np.array([2, 0], np.uint8)
    for labels in (wholes, list(wholes), torch.tensor([2, 0]), ("triangles", np.int64(0))):
        assert torch.equal(pipeline.sample_latents(labels, noise=noise.numpy()), expected)
    assert torch.equal(pipeline.sample_latents(np.int32(2)), pipeline.sample_latents(2))
    half = noise.bfloat16()
    assert torch.equal(pipeline.sample_latents([2, 0], noise=half), pipeline.sample_latents([2, 0], noise=half.float()))


def test_by_the_sde_a_call_draws_what_the_seed_and_an_images_place_say(pipeline: SemanticFirstPipeline) -> None:
    by = {"protocol": "sit", "steps": 6, "seed": 5, "delta_t": 0.3}
    together = pipeline.sample_latents([0, 1, 2], **by)
    assert torch.allclose(pipeline.sample_latents([0, 1], **by), together[:2], atol=1e-5)
    assert torch.allclose(pipeline.sample_latents([0, 1, 2], batch_size=1, **by), together, atol=1e-5)
    assert not torch.allclose(pipeline.sample_latents([0, 1, 2], **by | {"seed": 6}), together, atol=1e-2)


def test_generators_draw_the_noise_in_the_place_of_the_seed(pipeline: SemanticFirstPipeline) -> None:
    """Those of the seed give its images; one by itself goes on where it is; with one each, images are independent."""
    by_seed = pipeline.sample_latents([0, 1, 2], seed=5)
    assert torch.equal(pipeline.sample_latents([0, 1, 2], generator=pipeline.generators(5, 3)), by_seed)
    one = torch.Generator().manual_seed(9)
    first, second = (pipeline.sample_latents([0, 1], generator=one) for _ in range(2))
    again = torch.Generator().manual_seed(9)
    for made in (first, second):
        assert torch.equal(made, pipeline.sample_latents([0, 1], noise=torch.randn(2, CHANNELS, 2, 2, generator=again)))
    alone = pipeline.sample_latents(2, generator=pipeline.generators(5, 3)[2:])
    torch.testing.assert_close(alone[0], by_seed[2], atol=1e-5, rtol=1e-5)


def test_a_compressor_or_encoder_of_other_latents_is_refused(pipeline: SemanticFirstPipeline) -> None:
    picture, fitting = Image.new("RGB", (SIDE, SIDE)), pipeline.semantic
    for config, named in (
        (SemanticVAEConfig(WIDTH, SEMANTIC + 1, width=16, depth=1, heads=2), "4 instead of 3"),
        (SemanticVAEConfig(WIDTH + 1, SEMANTIC, width=16, depth=1, heads=2), "192 instead of 193"),
    ):
        pipeline.semantic = SemanticVAE(config)
        with refusal("encoder", named):
            pipeline.encode(picture)
    pipeline.semantic = fitting
    pipeline.encode(picture)


def test_what_was_not_loaded_is_said(tmp_path: Path) -> None:
    pipeline = SemanticFirstPipeline.from_settings(project(tmp_path))
    with refusal("sample.guidance", "'autoguidance'", "cfg"):
        pipeline(0, guidance="autoguidance")
    with refusal("encoder", "encoder=True"):
        pipeline.encode(Image.new("RGB", (SIDE, SIDE)))


def test_moving_the_pipeline_moves_all_of_it(pipeline: SemanticFirstPipeline) -> None:
    assert pipeline.to("meta") is pipeline
    parts = [pipeline.dit, pipeline.guide, pipeline.texture_vae, pipeline.semantic, pipeline.encoder]
    tensors = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
    assert len(tensors) > 100
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert pipeline.device.type == "meta"


def test_the_precision_of_products_is_sfd_samples_while_a_call_runs_on_a_gpu_and_then_the_callers() -> None:
    before = torch.get_float32_matmul_precision()
    for device, expected in (("cuda", "high"), ("cpu", before)):
        with float32_products(torch.device(device), tf32=True):
            assert torch.get_float32_matmul_precision() == expected
        assert torch.get_float32_matmul_precision() == before

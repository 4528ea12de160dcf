"""Image to image: what is kept of a picture stays as it is to the bit, and the rest is drawn from noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refusal
from tiny_project import SIDE, TEXTURE
from torch import Tensor
from trained_pipeline import project

from sfd_cli.config import Settings
from sfd_cli.diffusion.schedule import schedule_of
from sfd_cli.networks.lightning_dit import LightningDiT
from sfd_cli.pipeline.seeds import initial_noise
from sfd_cli.pipeline.semantic_first import SemanticFirstPipeline

LABELS = [2, 0, 1]


@pytest.fixture
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(autouse=True)
def _hangs_on_all_it_sees(pipeline: SemanticFirstPipeline) -> None:
    for parameter in pipeline.dit.parameters():
        parameter.data *= 3


def painted(*cells: tuple[int, int], size: int = SIDE) -> Image.Image:
    """A mask that is white in cells of the grid of 2 x 2."""
    values = np.zeros((size, size), np.uint8)
    half = size // 2
    for row, column in cells:
        values[row * half : (row + 1) * half, column * half : (column + 1) * half] = 255
    return Image.fromarray(values)


def streams(latents: Tensor) -> tuple[Tensor, Tensor]:
    return latents[:, :TEXTURE], latents[:, TEXTURE:]


@pytest.mark.parametrize("solver", ["euler", "ab3", "dopri5"])
@pytest.mark.parametrize("delta_t", [0.0, 0.3])
def test_a_kept_stream_is_the_encoded_pictures(
    pipeline: SemanticFirstPipeline, picture: Image.Image, solver: str, delta_t: float
) -> None:
    texture, semantic = streams(pipeline.encode(picture))
    by: dict[str, Any] = {"solver": solver, "delta_t": delta_t, "steps": 6}
    textures, semantics = streams(pipeline.sample_latents(LABELS, image=picture, keep="semantics", **by))
    assert torch.equal(semantics, semantic.expand_as(semantics))
    assert all((one - texture).abs().max() > 1e-2 for one in textures)
    assert (textures[0] - textures[1]).abs().max() > 1e-2
    textures, semantics = streams(pipeline.sample_latents(LABELS, image=picture, keep="textures", **by))
    assert torch.equal(textures, texture.expand_as(textures))
    assert all((one - semantic).abs().max() > 1e-2 for one in semantics)


def test_what_is_drawn_beside_kept_semantics_hangs_on_them(
    pipeline: SemanticFirstPipeline, picture: Image.Image
) -> None:
    other = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    first, second = (pipeline.sample_latents(LABELS, image=image, keep="semantics") for image in (picture, other))
    assert (streams(first)[0] - streams(second)[0]).abs().max() > 1e-3


def test_from_the_end_an_image_is_the_picture_encoded_and_decoded(
    pipeline: SemanticFirstPipeline, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = pipeline.encode(picture)
    monkeypatch.setattr(LightningDiT, "forward", None)
    latents = pipeline.sample_latents(LABELS, image=picture, start_time=1)
    assert torch.equal(latents, encoded.expand_as(latents))
    images = pipeline(LABELS, image=picture, start_time=1.0, output="uint8").images
    assert torch.equal(images, pipeline.decode(encoded.repeat(3, 1, 1, 1)))


@pytest.mark.parametrize("sample", [{}, {"solver": "heun", "guidance": "cfg"}, {"solver": "euler_maruyama"}], ids=str)
def test_from_the_beginning_an_image_is_an_ordinary_sample(
    pipeline: SemanticFirstPipeline, picture: Image.Image, sample: dict[str, Any]
) -> None:
    own = pipeline.sample_latents(LABELS, **sample)
    assert torch.equal(pipeline.sample_latents(LABELS, image=picture, start_time=0.0, **sample), own)


@pytest.mark.parametrize(
    "law", [{"delta_t": 0.3}, {"delta_t": 0.0}, {"schedule": "lead", "lead": 1.5}, {"schedule": "curve", "lead": 1.0}]
)
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_in_between_both_streams_begin_with_noise_of_their_own_times(
    pipeline: SemanticFirstPipeline, picture: Image.Image, law: dict[str, Any], part: float
) -> None:
    begun: list[tuple[float, Tensor]] = []

    sampler = pipeline._sampler
    original = type(sampler)._integrate

    def noted(self: Any, latents: Tensor, *rest: Any, **options: Any) -> Tensor:
        begun.append((options["start"], latents))
        return original(self, latents, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(sampler), "_integrate", noted)
        pipeline.sample_latents(LABELS, image=picture, start_time=part, **law)
        schedule = schedule_of(sampler.sample.model_copy(update={"delta_t": None, "lead_slope": 0.0} | law))
    ((progress, latents),) = begun
    assert progress == pytest.approx(part * schedule.end)
    noise, encoded = initial_noise(0, range(3), pipeline.shape), pipeline.encode(picture)
    times = schedule.times(torch.tensor([progress]))
    for stream, time in enumerate(times):
        expected = (1 - time) * streams(noise)[stream] + time * streams(encoded)[stream]
        torch.testing.assert_close(streams(latents)[stream], expected, atol=1e-5, rtol=1e-5)


def test_the_later_it_begins_the_nearer_it_stays(pipeline: SemanticFirstPipeline, picture: Image.Image) -> None:
    encoded = pipeline.encode(picture)
    far = [
        (pipeline.sample_latents(LABELS, image=picture, start_time=part) - encoded).square().mean().item()
        for part in (0.0, 0.6, 0.9, 0.99, 1.0)
    ]
    assert far == sorted(far, reverse=True)
    assert far[-1] == 0


@pytest.mark.parametrize("keep", [None, "semantics", "textures"])
def test_what_a_mask_leaves_black_is_as_it_was(
    pipeline: SemanticFirstPipeline, picture: Image.Image, keep: str | None
) -> None:
    encoded = pipeline.encode(picture)
    found = pipeline.sample_latents(LABELS, image=picture, mask=painted((0, 1)), keep=keep)
    white = torch.zeros(2, 2, dtype=torch.bool)
    white[0, 1] = True
    for stream, (name, now, before) in enumerate(
        zip(("textures", "semantics"), streams(found), streams(encoded), strict=True)
    ):
        assert torch.equal(now[..., ~white], before.expand_as(now)[..., ~white]), stream
        moved = (now - before)[..., white].abs().amin(dim=0).max()
        assert (moved > 1e-3) == (name != keep)


def test_a_mask_may_go_with_a_start_and_what_is_black_still_stays(
    pipeline: SemanticFirstPipeline, picture: Image.Image
) -> None:
    encoded = pipeline.encode(picture)
    found = pipeline.sample_latents(LABELS, image=picture, mask=painted((1, 0)), start_time=0.5)
    kept = [(0, 0), (0, 1), (1, 1)]
    for row, column in kept:
        assert torch.equal(found[..., row, column], encoded.expand_as(found)[..., row, column])
    assert (found - encoded)[..., 1, 0].abs().max() > 1e-3


def test_a_mask_is_cropped_with_its_picture_and_a_cell_with_a_white_pixel_is_redrawn(
    pipeline: SemanticFirstPipeline,
) -> None:
    """A picture of 64 x 32: its middle is seen, of which the pixel at (40, 3) lies in the upper right quarter."""
    pixels = np.random.default_rng(1).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    wide, mask = Image.fromarray(pixels), np.zeros((32, 64), np.uint8)
    mask[2:4, 40:42] = 255
    encoded = pipeline.encode(wide)
    found = pipeline.sample_latents(LABELS, image=wide, mask=Image.fromarray(mask))
    moved = (found - encoded).abs().amax(dim=(0, 1)) > 0
    assert moved.tolist() == [[False, True], [False, False]]
    outside = np.zeros((32, 64), np.uint8)
    outside[:, :10] = 255
    with refusal("sample.mask", "white"):
        pipeline(LABELS, image=wide, mask=Image.fromarray(outside))


def test_everything_white_is_drawn_as_without_a_picture(pipeline: SemanticFirstPipeline, picture: Image.Image) -> None:
    white = Image.new("1", (SIDE, SIDE), 1)
    assert torch.equal(pipeline.sample_latents(LABELS, image=picture, mask=white), pipeline.sample_latents(LABELS))


def test_a_picture_and_a_mask_may_be_files_and_strips_may_be_made_of_them(
    pipeline: SemanticFirstPipeline, picture: Image.Image, tmp_path: Path
) -> None:
    picture.save(tmp_path / "picture.png")
    painted((0, 0)).save(tmp_path / "mask.png")
    expected = pipeline.sample_latents(LABELS, image=picture, mask=painted((0, 0)))
    found = pipeline.sample_latents(LABELS, image=str(tmp_path / "picture.png"), mask=tmp_path / "mask.png")
    assert torch.equal(found, expected)
    strip = pipeline.sample_latents([0] * 4, image=picture, keep="semantics", to_seed=9)
    semantic = streams(pipeline.encode(picture))[1]
    assert torch.equal(streams(strip)[1], semantic.expand_as(streams(strip)[1]))
    first = initial_noise(0, [0], pipeline.shape).repeat(4, 1, 1, 1)
    own = pipeline.sample_latents([0] * 4, image=picture, keep="semantics", noise=first)
    assert torch.equal(strip[0], own[0])


def test_the_bar_counts_the_steps_that_are_left(pipeline: SemanticFirstPipeline, picture: Image.Image) -> None:
    told: list[int] = []

    def look(_: Any, step: int, progress: float, tensors: dict[str, Tensor]) -> None:
        told.append(step)

    bars: list[int | None] = []
    bar = pipeline.progress_bar
    pipeline.progress_bar = lambda iterable=None, total=None: bars.append(total) or bar(total=total)  # type: ignore
    pipeline(LABELS, image=picture, start_time=0.5, steps=10, callback_on_step_end=look)
    assert bars == [len(told)]
    assert len(told) < 10


def mask_of(values: Any) -> Image.Image:
    return Image.fromarray(np.asarray(values, np.uint8))


GREY = np.full((SIDE, SIDE), 255)
GREY[3, 4] = 127
RED = np.full((SIDE, SIDE, 3), 255)
RED[0, 0] = (255, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "subject", "named"),
    [
        ({"mask": painted(size=2 * SIDE)}, "sample.mask", ("32 x 32", "16 x 16")),
        ({"mask": Image.new("L", (SIDE, SIDE + 1), 255)}, "sample.mask", ("16 x 17",)),
        ({"mask": mask_of(GREY)}, "sample.mask", ("127", "PNG")),
        ({"mask": mask_of(RED)}, "sample.mask", ("colours",)),
        ({"mask": painted()}, "sample.mask", ("white",)),
        ({"mask": np.zeros((SIDE, SIDE))}, "sample.mask", ("ndarray",)),
        ({"mask": "nowhere.png"}, "sample.mask", ("nowhere.png",)),
        ({"keep": "colours"}, "sample.keep", ("'colours'",)),
        ({"start_time": 1.5}, "sample.start_time", ("1.5",)),
        ({"start_time": -0.1}, "sample.start_time", ("-0.1",)),
        ({"start_time": float("nan")}, "sample.start_time", ("nan",)),
        ({}, "sample.image", ("keep", "start_time", "mask")),
        ({"keep": "semantics", "solver": "euler_maruyama"}, "sample.solver", ("euler_maruyama",)),
        ({"image": None, "keep": "semantics"}, "sample.keep", ("sample.image",)),
        ({"image": None, "start_time": 0.0}, "sample.start_time", ("sample.image",)),
        ({"image": None, "mask": painted((0, 0))}, "sample.mask", ("sample.image",)),
        ({"image": "nowhere.png", "keep": "semantics"}, "sample.image", ("nowhere.png",)),
        ({"image": 3, "keep": "semantics"}, "sample.image", ("int",)),
    ],
)
def test_mistakes_are_refused_before_anything_is_sampled(
    pipeline: SemanticFirstPipeline,
    picture: Image.Image,
    arguments: dict[str, Any],
    subject: str,
    named: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(LightningDiT, "forward", None)
    with refusal(subject, *named) as caught:
        pipeline(LABELS, **({"image": picture} | arguments))
    assert "\n" not in str(caught.value)


def test_without_an_encoder_no_image_is_made_of_a_picture(tmp_path: Path, picture: Image.Image) -> None:
    settings = project(tmp_path)
    with refusal("encoder", "encoder=True"):
        SemanticFirstPipeline.from_settings(settings)(0, image=picture, keep="semantics")


def test_settings_of_a_run_are_no_defaults_of_calls(settings: Settings, tmp_path: Path) -> None:
    edits: dict[str, Any] = {"start_time": 0.5, "image": tmp_path / "gone.png", "to_seed": 3, "keep": "semantics"}
    edited = settings.model_copy(update={"sample": settings.sample.model_copy(update=edits)})
    again = SemanticFirstPipeline.from_settings(edited, encoder=True)
    plain = SemanticFirstPipeline.from_settings(settings)
    assert torch.equal(again.sample_latents(LABELS), plain.sample_latents(LABELS))
    again.save_pretrained(tmp_path / "saved", samples=2)
    for file in (tmp_path / "saved").rglob("*.json"):
        assert not any(f'"{key}"' in file.read_text() for key in edits), file
    with refusal("sample.keep", "call"):
        SemanticFirstPipeline.from_checkpoints("a", "b", keep="semantics")

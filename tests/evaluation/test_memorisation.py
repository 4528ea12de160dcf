"""Copies of training images are found, in whatever disguise, and new images are not."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from refusals import refusal
from stand_ins import put
from tiny_project import random_images, tiny_settings, write_models, write_training_images

from sfd_cli.config import Settings
from sfd_cli.evaluation import memorisation as module
from sfd_cli.evaluation.extractor import Extractor
from sfd_cli.evaluation.images import ImageFiles
from sfd_cli.evaluation.memorisation import memorisation, nearest
from sfd_cli.evaluation.reconstructions import TextureCodec
from sfd_cli.files import read_json, write_json
from sfd_cli.stages import memorisation as stage

SIDE = 32


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("block", [7, 1024])
def test_the_nearest_is_that_of_an_exhaustive_search_over_both_views(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    views, training = normal(2100 if block > 7 else 40, 2, 5), normal(30, 5, seed=1)
    found = nearest(views, training)
    apart = np.linalg.norm(views.numpy()[:, :, None].astype(np.float64) - training.numpy(), axis=-1).min(axis=1)
    np.testing.assert_allclose(found.distances, apart.min(axis=1))
    np.testing.assert_array_equal(found.images, apart.argmin(axis=1))


def test_how_near_a_copy_is_does_not_drown_in_rounding() -> None:
    training = 1000 + normal(20, 6)
    views = training[:, None].double() + torch.tensor([1e-4, 1e-3], dtype=torch.float64)[None, :, None]
    found = nearest(views, training)
    assert found.images.tolist() == list(range(20))
    np.testing.assert_allclose(found.distances, 1e-4 * 6**0.5, rtol=1e-6)


def test_no_more_than_a_block_of_distances_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, ...]] = []
    cdist = torch.cdist

    def measured(*rows: torch.Tensor, **options: str) -> torch.Tensor:
        found = cdist(*rows, **options)
        sizes.append(tuple(found.shape))
        return found

    monkeypatch.setattr(module, "BLOCK", 10)
    monkeypatch.setattr(torch, "cdist", measured)
    nearest(normal(33, 2, 3), normal(50, 3, seed=1))
    assert set(sizes) == {(20, 10), (6, 10)}


@pytest.mark.parametrize("block", [7, 1024])
def test_an_image_is_not_its_own_neighbour(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    training = normal(30, 4)
    found = nearest(training[:, None] + 1e-3, training, without_itself=True)
    apart = np.linalg.norm(1e-3 + training.numpy()[:, None] - training.numpy(), axis=-1) + np.diag([np.inf] * 30)
    np.testing.assert_allclose(found.distances, apart.min(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(found.images, apart.argmin(axis=1))
    assert np.isinf(nearest(training[:1, None], training[:1], without_itself=True).distances).all()


def test_samples_may_be_as_near_as_near_duplicates_are_to_each_other() -> None:
    """A set that has few motifs, each in several versions: another version is no copy, what is nearer than these is."""
    motifs, chosen = normal(150, 1, 8), torch.randint(150, (1000,), generator=torch.Generator().manual_seed(1))
    versions = (motifs[chosen] + 0.1 * normal(1000, 1, 8, seed=2)).repeat(1, 2, 1)
    training, new = versions.split([600, 400])
    assert memorisation(new, training, training).is_found is False
    assert memorisation(training[:400] + 0.01, training, training).is_found is True


def test_where_images_are_there_twice_it_cannot_be_told() -> None:
    training = normal(40, 1, 6).repeat(2, 2, 1)
    found = memorisation(training[:5], training, training)
    assert (found.threshold, found.is_found) == (0, None)


@pytest.mark.parametrize("seed", range(4))
def test_new_samples_are_as_near_as_real_images_and_copies_nearer(seed: int) -> None:
    training, new = normal(600, 1, 8, seed=seed).repeat(1, 2, 1), normal(400, 1, 8, seed=100 + seed).repeat(1, 2, 1)
    found = memorisation(new, training, training)
    assert not found.is_found
    assert found.share < 0.04
    new[:40] = training[60:100] + 0.02 * normal(40, 2, 8, seed=7)
    copied = memorisation(new, training, training)
    assert copied.is_found
    assert copied.share == pytest.approx(0.1, abs=0.04)
    assert set(copied.closest(40)) == set(range(40))
    assert copied.samples.images[:40].tolist() == list(range(60, 100))
    assert copied.error == pytest.approx(np.sqrt(0.01 * 0.99 * (1 / 400 + 1 / 600)))


def as_it_is(image: Image.Image) -> Image.Image:
    return image


def shifted(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.roll(np.asarray(image), (2, 2), axis=(0, 1)))


def encoded_again(image: Image.Image) -> Image.Image:
    packed = io.BytesIO()
    image.save(packed, format="JPEG", quality=60)
    return Image.open(packed).convert("RGB")


def blurred_colours() -> Extractor:
    """The mean colours of 16 parts: few enough numbers that a shift of two pixels moves them little."""

    def compute(images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(images.float(), 8).flatten(1) / 30

    return Extractor.of("dinov2", 48, torch.device("cpu"), compute)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A project with 24 training images of random blocks, and 20 samples that are others."""
    found = tiny_settings(tmp_path)
    found = found.model_copy(update={"images": found.images.model_copy(update={"size": SIDE})})
    write_training_images(found)
    for index, file in enumerate(sorted(found.paths.images.rglob("*.png"))):
        blocks(index).save(file)
    found.paths.samples.mkdir()
    for index in range(20):
        blocks(1000 + index).save(found.paths.samples / f"{index:02}.png")
    put(monkeypatch, "encoder", blurred_colours)
    return found


def blocks(seed: int) -> Image.Image:
    """Smooth patches of colour."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("disguise", [as_it_is, ImageOps.mirror, shifted, encoded_again])
def test_planted_copies_are_found(settings: Settings, disguise: Callable[[Image.Image], Image.Image]) -> None:
    clean = stage.run(settings)
    assert clean["memorised"] is False
    files = sorted(settings.paths.images.rglob("*.png"))[:8]
    for index, file in enumerate(files):
        disguise(Image.open(file).convert("RGB")).save(settings.paths.samples / f"{index:02}.png")
    found = stage.run(settings)
    assert found["memorised"] is True
    assert found["share_near"] == pytest.approx(8 / 20, abs=0.06)
    report = read_json(Path(found["file"]))
    nearest_eight = {pair["sample"]: Path(pair["training_image"]).name for pair in report["closest"][:8]}
    assert nearest_eight == {index: file.name for index, file in enumerate(files)}
    with Image.open(found["picture"]) as picture:
        assert min(picture.size) > 300


def test_one_image_is_refused(settings: Settings, tmp_path: Path) -> None:
    random_images(tmp_path / "one", ["0.png"], 0)
    paths = settings.paths.model_copy(update={"samples": tmp_path / "one"})
    with refusal("samples"):
        stage.run(settings.model_copy(update={"paths": paths}))
    assert not list(settings.paths.metrics.glob("memorisation*"))


def test_samples_of_sfd_are_compared_with_what_the_codec_makes_of_real_images(settings: Settings) -> None:
    write_models(settings)
    for index in range(20):
        (settings.paths.samples / f"{index:02}.png").rename(settings.paths.samples / f"{index:06}.png")
    write_json(settings.paths.samples / "labels.json", [0] * 20)
    made = {"fingerprint": "f" * 64, "complete": True, "facts": {"class_names": ["circles"]}}
    write_json(settings.paths.samples / "settings.json", made | {"settings": {"num_images": 20}})
    found = stage.run(settings)
    assert found["real_images_are"] == stage.AFTER_CODEC
    codec = TextureCodec.open(settings, torch.device("cpu"))
    (real,) = ImageFiles(sorted(settings.paths.images.rglob("*.png"))).batches(24)
    after, before = (blurred_colours()(images)["pooled"] for images in (codec.reconstruct(real), real))
    mirrored = blurred_colours()(codec.reconstruct(real).flip(-1))["pooled"]
    apart = torch.minimum(*(torch.cdist(view, before) for view in (after, mirrored))).fill_diagonal_(torch.inf)
    assert found["threshold"] == pytest.approx(np.percentile(apart.amin(1).numpy(), 1), rel=1e-5)
    shutil.rmtree(settings.paths.texture_vae)
    assert "as they are" in stage.run(settings)["real_images_are"]

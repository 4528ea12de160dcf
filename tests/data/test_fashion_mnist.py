"""Fashion-MNIST: what is read of its files, where it lies on the canvas, and what is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from idx_files import IMAGES, LABELS, write_idx, write_training_set
from PIL import Image
from refusals import refusal

from sfd_cli.artifacts.recipe import COPY, SETTINGS
from sfd_cli.config import Settings
from sfd_cli.data import fashion_mnist
from sfd_cli.data.images import ImageManifest, ImageReader
from sfd_cli.stages import prepare_data

COUNT = 23


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with both files, beside the project that is the working directory."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    write_training_set(tmp_path / "idx", COUNT)
    return tmp_path / "idx"


def settings_for(source: Path | None, **images: Any) -> Settings:
    chosen = {"source": "fashion_mnist", "folder": source, "size": 32, **images}
    encoder = {"name": "dinov2_vits14", "weights": "random", "image_size": chosen["size"] // 8 * 14}
    return Settings.model_validate({"images": chosen, "encoder": encoder})


def written() -> dict[str, bytes]:
    root = Path("data/images")
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_images_come_out_as_they_went_in_with_their_class_and_a_border_of_background(source: Path) -> None:
    pixels, labels = write_training_set(source, COUNT)
    result = prepare_data.run(settings_for(source))
    manifest = ImageManifest.load(Path("data/images"))
    assert (result["images"], result["size"]) == (COUNT, "32 x 32")
    assert manifest.classes == sorted(fashion_mnist.CLASSES)
    images = ImageReader(manifest, 32).read(range(COUNT)).numpy()
    assert images.shape == (COUNT, 3, 32, 32)
    for place, file in enumerate(manifest.files):
        index = int(Path(file).stem)
        expected = np.zeros((32, 32), np.uint8)
        expected[2:30, 2:30] = pixels[index]
        assert (images[place] == expected).all()
        assert file.split("/")[0] == fashion_mnist.CLASSES[labels[index]]
    with Image.open(manifest.path(0)) as image:
        assert image.mode == "L"


def test_every_label_has_the_name_that_the_data_set_gives_it(source: Path) -> None:
    prepare_data.run(settings_for(source, limit=10))
    names = ["t-shirt-top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot"]
    given = [index * COUNT // 10 for index in range(10)]
    assert set(ImageManifest.load(Path("data/images")).files) == {f"{names[i % 10]}/{i:05d}.png" for i in given}


def test_packed_and_plain_files_give_the_same_bytes_each_time(source: Path, tmp_path: Path) -> None:
    write_training_set(tmp_path / "packed", COUNT, packed=True)
    prepare_data.run(settings_for(source))
    plain = written()
    Path("data/images").rename(tmp_path / "first")
    prepare_data.run(settings_for(tmp_path / "packed"))
    packed = written()
    assert len(plain) == COUNT + 3
    assert plain.keys() == packed.keys()
    assert all(plain[name] == packed[name] for name in plain.keys() - {SETTINGS, COPY})


def test_the_same_images_elsewhere_are_found_up_to_date_and_others_are_not(source: Path, tmp_path: Path) -> None:
    prepare_data.run(settings_for(source))
    before = {path: path.stat().st_mtime_ns for path in Path("data/images").rglob("*.png")}
    source.rename(tmp_path / "moved")
    prepare_data.run(settings_for(tmp_path / "moved"))
    assert {path: path.stat().st_mtime_ns for path in Path("data/images").rglob("*.png")} == before
    write_idx(tmp_path / "moved" / LABELS, np.zeros(COUNT, np.uint8))
    assert prepare_data.run(settings_for(tmp_path / "moved"))["classes"] == {"t-shirt-top": COUNT}


def test_without_a_folder_the_files_of_debians_package_are_read(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN", source)
    assert prepare_data.run(settings_for(None))["images"] == COUNT


@pytest.mark.parametrize(("size", "times", "before", "after"), [(28, 1, 0, 0), (33, 1, 2, 3), (64, 2, 4, 4)])
def test_a_larger_canvas_repeats_pixels_and_the_rest_is_background(
    size: int, times: int, before: int, after: int
) -> None:
    image = np.random.default_rng(1).integers(1, 256, (28, 28), dtype=np.uint8)
    canvas = fashion_mnist.on_canvas(image, size)
    assert canvas.shape == (size, size)
    inside = canvas[before : size - after, before : size - after]
    assert all((inside[row::times, column::times] == image).all() for row in range(times) for column in range(times))
    assert np.count_nonzero(canvas) == np.count_nonzero(inside) == 28 * 28 * times**2


def test_a_size_below_28_is_refused_before_anything_is_written(source: Path) -> None:
    with refusal("images.size", 24, 28):
        prepare_data.run(settings_for(source, size=24))
    assert not Path("data").exists()


@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_a_missing_file_is_named_with_the_two_ways_to_have_it(source: Path, name: str) -> None:
    (source / name).unlink()
    with refusal("images.folder", source, name, "apt install dataset-fashion-mnist", IMAGES, LABELS):
        prepare_data.run(settings_for(source))
    assert not Path("data").exists()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", [IMAGES, LABELS])
@pytest.mark.parametrize("kept", [0, 3, 10, -1])
def test_a_cut_file_is_named_and_nothing_is_written(source: Path, name: str, packed: bool, kept: int) -> None:
    write_training_set(source, COUNT, packed)
    path = source / (f"{name}.gz" if packed else name)
    path.write_bytes(path.read_bytes()[:kept])
    with refusal(path, "apt install dataset-fashion-mnist"):
        prepare_data.run(settings_for(source))
    assert not Path("data").exists()


def test_bytes_after_the_end_are_as_wrong_as_missing_ones(source: Path) -> None:
    path = source / LABELS
    path.write_bytes(path.read_bytes() + b"\0")
    with refusal(path, COUNT + 1, COUNT):
        prepare_data.run(settings_for(source))


def test_a_damaged_archive_is_named(source: Path) -> None:
    write_training_set(source, COUNT, packed=True)
    path = source / f"{IMAGES}.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with refusal(path):
        prepare_data.run(settings_for(source))


@pytest.mark.parametrize(
    ("name", "values", "kind", "named"),
    [
        (IMAGES, np.zeros((COUNT, 28, 28), np.uint8), 0x0B, "3 dimensions"),
        (IMAGES, np.zeros(COUNT, np.uint8), 0x08, "3 dimensions"),
        (LABELS, np.zeros((COUNT, 28, 28), np.uint8), 0x08, "1 dimension"),
        (IMAGES, np.zeros((COUNT, 32, 28), np.uint8), 0x08, "32 x 28"),
        (IMAGES, np.zeros((0, 28, 28), np.uint8), 0x08, "no images"),
        (LABELS, np.zeros(COUNT - 1, np.uint8), 0x08, f"{COUNT - 1} labels for {COUNT} images"),
        (LABELS, np.full(COUNT, 10, np.uint8), 0x08, "label 10"),
    ],
    ids=["kind", "labels for images", "images for labels", "sides", "none", "counts", "label"],
)
def test_a_file_of_something_else_is_named_and_costs_no_images_that_were_there(
    source: Path, name: str, values: np.ndarray, kind: int, named: str
) -> None:
    prepare_data.run(settings_for(source))
    before = {file: hashlib.sha256(content).hexdigest() for file, content in written().items()}
    write_idx(source / name, values, kind)
    with refusal(source / name, named):
        prepare_data.run(settings_for(source))
    assert {file: hashlib.sha256(content).hexdigest() for file, content in written().items()} == before


def test_a_folder_inside_the_one_that_is_written_is_refused(source: Path) -> None:
    inside = Path("data/images/idx")
    write_training_set(inside, COUNT)
    with refusal("images.folder", inside):
        prepare_data.run(settings_for(inside))

"""Manifests, the ADM centre crop, decoding and threaded reading."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from refusals import refusal

from sfd_cli.data.images import (
    ImageManifest,
    ImageReader,
    by_folders,
    center_crop,
    decode_image,
    evenly_spaced,
    is_image,
    list_image_folder,
)


def picture(path: Path, color: tuple[int, ...], size: tuple[int, int] = (20, 20), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)


@pytest.fixture
def manifest(tmp_path: Path) -> ImageManifest:
    digests = {}
    for index in range(30):
        name = f"{'ab'[index % 2]}/{index:02d}.png"
        picture(tmp_path / name, (index, 2 * index, 255 - index))
        digests[name] = str(index)
    return ImageManifest.of(tmp_path, digests)


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 300), height=st.integers(1, 300), size=st.integers(1, 64))
def test_the_centre_crop_of_any_image_is_square(width, height, size):
    assert center_crop(Image.new("RGB", (width, height)), size).size == (size, size)


@given(count=st.integers(0, 500), limit=st.none() | st.integers(1, 600))
def test_evenly_spaced_indices_are_distinct_ascending_and_as_many_as_asked(count, limit):
    chosen = evenly_spaced(count, limit)
    assert len(chosen) == min(count, limit or count)
    assert all(0 <= index < count for index in chosen)
    gaps = set(np.diff(chosen))
    assert all(gap >= 1 for gap in gaps)
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_a_manifest_read_back_is_the_one_written(manifest, tmp_path):
    manifest.save(tmp_path, root=".")
    loaded = ImageManifest.load(tmp_path)
    assert (loaded.classes, loaded.files, loaded.labels) == (["a", "b"], manifest.files, [0] * 15 + [1] * 15)
    assert loaded.fingerprint == manifest.fingerprint
    assert loaded.path(0) == tmp_path / "a/00.png"
    assert loaded.class_counts() == {"a": 15, "b": 15}


@given(st.lists(st.text("aA/-. _0ä\x01!", min_size=1, max_size=8)))
def test_names_are_sorted_as_the_lists_of_their_parts(names):
    assert sorted(names, key=by_folders) == sorted(names, key=lambda name: name.split("/"))


@given(st.text("aG./ _-", max_size=6), st.sampled_from(["", ".png", ".JPEG", ".txt", "png", "."]))
def test_a_name_in_a_folder_is_an_images_where_it_is_one_in_an_archive(stem, suffix):
    name = f"{stem}{suffix}"
    if "/" not in name:
        assert is_image(name) == is_image(f"a/{name}")


def test_a_manifests_fingerprint_follows_names_and_contents_but_not_the_place(tmp_path):
    one = ImageManifest.of(tmp_path, {"a/1.png": "x", "b/2.png": "y"}).fingerprint
    assert ImageManifest.of(tmp_path / "elsewhere", {"b/2.png": "y", "a/1.png": "x"}).fingerprint == one
    assert ImageManifest.of(tmp_path, {"a/1.png": "x", "b/2.png": "z"}).fingerprint != one
    assert ImageManifest.of(tmp_path, {"a/1.png": "x", "b/3.png": "y"}).fingerprint != one


def test_classes_whose_names_share_a_prefix_stay_grouped(tmp_path):
    manifest = ImageManifest.of(tmp_path, {"cat-big/1.png": "", "cat/2.png": "", "cat/sub/3.png": ""})
    assert manifest.classes == ["cat", "cat-big"]
    assert manifest.labels == sorted(manifest.labels)
    manifest.save(tmp_path, root=".")
    assert ImageManifest.load(tmp_path).files == manifest.files


def test_a_missing_damaged_or_orphaned_manifest_is_a_users_error(manifest, tmp_path):
    with refusal(tmp_path / "nowhere", "sfd prepare-data"):
        ImageManifest.load(tmp_path / "nowhere")
    (tmp_path / "manifest.json").write_text('{"some": "json"}')
    with refusal(tmp_path / "manifest.json", "sfd prepare-data"):
        ImageManifest.load(tmp_path)
    manifest.save(tmp_path, root="gone")
    with refusal(tmp_path / "manifest.json", tmp_path / "gone", "sfd prepare-data"):
        ImageManifest.load(tmp_path)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_images_are_read_in_the_order_asked(manifest, workers):
    reader = ImageReader(manifest, 8, workers)
    order = [29, 3, 3, 0, 17]
    images = reader.read(order)
    assert (images.shape, images.dtype) == ((5, 3, 8, 8), torch.uint8)
    red = [int(manifest.files[index][2:4]) for index in order]
    assert images[:, 0, 4, 4].tolist() == red


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_iterated_ahead_equal_batches_read_one_by_one(manifest, workers):
    batches = [range(7), range(7, 14), [2], range(14, 30)]
    reader = ImageReader(manifest, 8, workers)
    for batch, images in zip(batches, reader.iterate(batches), strict=True):
        assert torch.equal(images, ImageReader(manifest, 8, 0).read(batch))


def test_images_are_handed_over_on_a_device_with_channels_first(manifest):
    images = ImageReader(manifest, 8, 2, torch.device("meta")).read([0, 2])
    assert (images.device.type, images.dtype, images.shape) == ("meta", torch.uint8, (2, 3, 8, 8))
    assert images.is_contiguous()
    assert ImageReader(manifest, 8).read([]).shape == (0, 3, 8, 8)
    here = ImageReader(manifest, 8, 2).read([0, 2])
    assert here.is_contiguous()


def test_an_iteration_can_be_left_early(manifest):
    stream = ImageReader(manifest, 8, 2).iterate([[0], [1], [2], [3], [4]])
    assert next(stream).shape == (1, 3, 8, 8)
    stream.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_no_longer_decodes_is_named(manifest, workers):
    whole = manifest.path(4).read_bytes()
    manifest.path(4).write_bytes(whole[: len(whole) // 2])
    with refusal(manifest.path(4), "sfd prepare-data"):
        ImageReader(manifest, 8, workers).read([3, 4])
    manifest.path(5).unlink()
    with refusal(manifest.path(5), "sfd prepare-data"):
        ImageReader(manifest, 8, workers).read([5])


def test_what_is_transparent_becomes_white(tmp_path):
    picture(tmp_path / "clear.png", (255, 0, 0, 0), mode="RGBA")
    picture(tmp_path / "opaque.png", (255, 0, 0, 255), mode="RGBA")
    assert decode_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    assert decode_image(tmp_path / "opaque.png").getpixel((0, 0)) == (255, 0, 0)


def test_grey_palette_and_sixteen_bit_images_decode_as_rgb(tmp_path):
    picture(tmp_path / "grey.png", (77,), mode="L")
    Image.new("RGB", (4, 4), (10, 200, 30)).quantize(4).save(tmp_path / "palette.png")
    Image.fromarray(np.full((4, 4), 77 * 256 + 5, np.uint16)).save(tmp_path / "deep.png")
    assert decode_image(tmp_path / "grey.png").getpixel((0, 0)) == (77, 77, 77)
    assert decode_image(tmp_path / "palette.png").getpixel((0, 0)) == (10, 200, 30)
    assert decode_image(tmp_path / "deep.png").getpixel((0, 0)) == (77, 77, 77)


def test_an_image_folder_is_listed_deeply_without_hidden_and_other_files(tmp_path):
    for name in ("b/2.JPG", "a/sub/1.png", "a/.hidden.png", ".git/x.png", "a/.cache/y.png"):
        picture(tmp_path / name, (1, 2, 3))
    (tmp_path / "a/notes.txt").write_text("")
    (tmp_path / "readme.png").write_text("")
    assert list_image_folder(tmp_path) == ["a/sub/1.png", "b/2.JPG"]


def link_to(target: str, *places: Path) -> None:
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)


@pytest.mark.parametrize(
    ("target", "places"),
    [
        (".", ["a/here"]),
        ("..", ["a/up", "a/up-again", "b/up"]),
        ("../..", ["a/sub/up", "a/sub/again"]),
        ("../b", ["a/other"]),
        (".", ["loop"]),
    ],
)
def test_links_that_lead_back_list_every_image_of_a_class_once(tmp_path: Path, target: str, places: list[str]) -> None:
    for name in ("a/1.png", "a/sub/2.png", "b/3.png"):
        picture(tmp_path / name, (1, 2, 3))
    link_to(target, *(tmp_path / place for place in places))
    seen_from_a = ["a/other/3.png"] if "../b" in target else []
    assert list_image_folder(tmp_path) == ["a/1.png", *seen_from_a, "a/sub/2.png", "b/3.png"]


def test_folders_that_link_to_one_another_are_listed_once_each_by_their_own_names(tmp_path: Path) -> None:
    count = 12  # whose paths, one through the other, would be a billion
    for one in range(count):
        picture(tmp_path / f"a/{one:02d}/{one:02d}.png", (1, 2, 3))
        link_to("..", *(tmp_path / f"a/{one:02d}/to-{number}" for number in range(count)))
    assert list_image_folder(tmp_path) == [f"a/{one:02d}/{one:02d}.png" for one in range(count)]


def test_a_linked_folder_is_listed_in_every_class_that_links_to_it(tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere/1.png", (1, 2, 3))
    link_to(str(tmp_path / "elsewhere"), tmp_path / "images/a", tmp_path / "images/b/more")
    assert list_image_folder(tmp_path / "images") == ["a/1.png", "b/more/1.png"]


def test_folders_that_are_no_image_folder_say_what_to_do(tmp_path):
    with refusal("images.folder", tmp_path / "nowhere"):
        list_image_folder(tmp_path / "nowhere")
    with refusal("images.folder", tmp_path, f"{tmp_path}/CLASS/"):
        list_image_folder(tmp_path)
    picture(tmp_path / "loose.png", (1, 2, 3))
    assert list_image_folder(tmp_path) == ["loose.png"]
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "val").mkdir()
    with refusal("images.folder", "train, val", tmp_path / "train"):
        list_image_folder(tmp_path)
    with refusal("images.folder", tmp_path / "train", ".png"):
        list_image_folder(tmp_path / "train")

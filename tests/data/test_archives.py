"""Images in zip, tar and Parquet files: the same set as in folders, read in place, and damage told in one sentence."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refusal

from sfd_cli.artifacts.recipe import COPY, SETTINGS
from sfd_cli.config import Settings
from sfd_cli.data.contents import CONTENTS as HASHES
from sfd_cli.data.images import ImageManifest, ImageReader
from sfd_cli.files import read_json
from sfd_cli.stages import prepare_data

NAMES = ["cat/0.png", "cat/1.png", "cat/deep/2.png", "dog/0.png", "dog/9.png"]


def png(number: int, side: int = 20) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (side, side + number, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


CONTENTS = {name: png(number) for number, name in enumerate(NAMES)}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path


def folder(path: Path, contents: dict[str, bytes] = CONTENTS) -> Path:
    for name, content in contents.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def stored(path: Path, contents: dict[str, bytes] = CONTENTS, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def deflated(path: Path) -> Path:
    hidden = {"__MACOSX/cat/._0.png": b"resource", "photos/.DS_Store": b"", "photos/notes.txt": b"mine"}
    return stored(
        path, {f"photos/{name}": content for name, content in CONTENTS.items()} | hidden, zipfile.ZIP_DEFLATED
    )


def tarred(path: Path, contents: dict[str, bytes] = CONTENTS, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def tars_in_a_tar(path: Path) -> Path:
    """As ImageNet ships: a tar of one tar for each class."""
    classes: dict[str, dict[str, bytes]] = {}
    for name, content in CONTENTS.items():
        label, file = name.split("/", 1)
        classes.setdefault(label, {})[file] = content
    inner = {f"{label}.tar": tarred(path.with_name(label), files).read_bytes() for label, files in classes.items()}
    return tarred(path, inner)


def with_dots(path: Path) -> Path:
    return tarred(path, {f"./{name}": content for name, content in CONTENTS.items()})


def prepared(place: Path | str, **images: Any) -> ImageManifest:
    settings = {"images": {"source": "folder", "folder": str(place), **images}}
    prepare_data.run(Settings.model_validate(settings))
    return ImageManifest.load(Path("data/images"))


@pytest.mark.parametrize(
    ("pack", "suffix"),
    [(stored, "zip"), (deflated, "zip"), (tarred, "tar"), (with_dots, "tar"), (tars_in_a_tar, "tar")],
)
def test_an_archive_is_the_set_that_its_folder_is(pack: Callable[[Path], Path], suffix: str, project: Path) -> None:
    loose = prepared(folder(project / "photos"))
    pixels = ImageReader(loose, 16).read(range(5))
    packed = prepared(pack(project / f"packed.{suffix}"))
    assert packed.files == loose.files == NAMES
    assert (packed.classes, packed.labels) == (loose.classes, loose.labels) == (["cat", "dog"], [0, 0, 0, 1, 1])
    assert packed.fingerprint == loose.fingerprint
    assert torch.equal(ImageReader(packed, 16, workers=3).read(range(5)), pixels)
    assert {path.name for path in Path("data/images").iterdir()} == {"manifest.json", HASHES, SETTINGS, COPY}


def test_an_archive_takes_the_place_of_its_folder_and_nothing_is_made_again(project: Path) -> None:
    prepared(folder(project / "photos"))
    first = read_json(Path("data/images/settings.json"))["fingerprint"]
    prepared(stored(project / "photos.zip"))
    assert read_json(Path("data/images/settings.json"))["fingerprint"] == first


def test_several_shards_are_one_set_by_folder_or_by_pattern(project: Path) -> None:
    shards = project / "shards"
    shards.mkdir()
    for number, names in enumerate((NAMES[::2], NAMES[1::2])):
        tarred(shards / f"train-{number}.tar", {name: CONTENTS[name] for name in names})
    assert prepared(shards).files == NAMES
    tarred(shards / "val-0.tar")
    with refusal("images.folder", shards, "train, val", shards / "train*.tar"):
        prepared(shards)
    assert prepared(shards / "train*.tar").files == NAMES
    with refusal("images.folder", "cat/0.png", "train-0.tar", "val-0.tar"):
        prepared(shards / "*.tar")
    with refusal("images.folder", "nothing*.tar"):
        prepared(shards / "nothing*.tar")


def test_loose_images_are_one_class_in_a_folder_and_in_an_archive(project: Path) -> None:
    loose = {f"{number}.png": png(number) for number in range(3)}
    found = prepared(folder(project / "loose", loose))
    assert (found.classes, found.files) == (["images"], ["images/0.png", "images/1.png", "images/2.png"])
    pixels = ImageReader(found, 16).read([2, 0])
    packed = prepared(stored(project / "loose.zip", loose))
    assert packed.fingerprint == found.fingerprint
    assert torch.equal(ImageReader(packed, 16).read([2, 0]), pixels)
    with refusal("images.folder", "mixed.zip", "1 images outside"):
        prepared(stored(project / "mixed.zip", {"cat/0.png": png(0), "1.png": png(1)}))


def test_a_web_dataset_has_the_classes_that_its_labels_say_in_the_order_of_their_numbers(project: Path) -> None:
    shards = project / "shards"
    shards.mkdir()
    labels = [3, 10, 7, 3]
    for shard in (0, 1):
        contents: dict[str, bytes] = {}
        for row, label in enumerate(labels):
            contents |= {f"{row:04d}.png": png(10 * shard + row), f"{row:04d}.cls": str(label).encode()}
            contents |= {f"{row:04d}.json": b"{}", f"{row:04d}.mask.png": png(99)}
        tarred(shards / f"shard-{shard}.tar", contents)
    found = prepared(shards)
    assert found.classes == ["03", "07", "10"]
    assert found.files[:2] == ["03/shard-0-0000.png", "03/shard-0-0003.png"]
    assert [found.classes[label] for label in found.labels] == ["03"] * 4 + ["07"] * 2 + ["10"] * 2
    expected = ImageReader(prepared(folder(project / "one", {"a/0.png": png(13)})), 16).read([0])
    assert torch.equal(ImageReader(prepared(shards), 16).read([3]), expected)
    tarred(shards / "shard-1.tar", {"0000.png": png(1), "0001.png": png(1), "0001.cls": b"3"})
    with refusal("images.folder", "0000.png", "0000.cls"):
        prepared(shards)


def parquet(path: Path, column: str = "label", labels: Any = (2, 0, 2, 1), names: list[str] | None = None) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as file

    images = [{"bytes": png(number), "path": f"{number}.png"} for number in range(len(labels))]
    table = pyarrow.table({"image": images, column: list(labels)})
    if names is not None:
        feature = {"info": {"features": {column: {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(feature)})
    file.write_table(table, path, row_group_size=3)
    return path


def test_parquet_as_the_hub_ships_it_has_its_labels_and_their_names(project: Path) -> None:
    found = prepared(parquet(project / "train-0.parquet", names=["tench, Tinca tinca", "Egyptian cat", "a/b"]))
    assert found.classes == ["0-tench", "1-egyptian-cat", "2-a-b"]
    assert found.labels == [0, 1, 2, 2]
    rows = [1, 3, 0, 2]
    expected = folder(project / "same", {f"a/{place}.png": png(row) for place, row in enumerate(rows)})
    pixels = ImageReader(found, 16, workers=3).read(range(4))
    assert torch.equal(pixels, ImageReader(prepared(expected), 16).read(range(4)))


def test_parquet_with_words_or_bare_numbers_for_labels(project: Path) -> None:
    assert prepared(parquet(project / "a.parquet", labels=["dog", "cat"])).classes == ["cat", "dog"]
    assert prepared(parquet(project / "b.parquet", labels=[10, 9])).classes == ["09", "10"]


def test_parquet_without_labels_or_images_is_refused(project: Path) -> None:
    with refusal("images.folder", "x.parquet", "labels", "image, caption"):
        prepared(parquet(project / "x.parquet", "caption", ["a", "b"]))
    with refusal("images.folder", "test.parquet", "row 1", "-1"):
        prepared(parquet(project / "test.parquet", labels=[1, -1]))
    assert not Path("data/images").exists()


@pytest.mark.parametrize("left", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("suffix", ["zip", "tar", "parquet"])
def test_a_file_that_ends_early_is_refused_in_one_sentence(suffix: str, left: float, project: Path) -> None:
    path = project / f"packed.{suffix}"
    {"zip": stored, "tar": tarred, "parquet": parquet}[suffix](path)
    whole = path.read_bytes().rstrip(b"\0")  # a tar is filled up with zeros
    path.write_bytes(whole[: int(len(whole) * left)])
    with refusal("images.folder", path, "copy it again"):
        prepared(path)
    assert not Path("data/images").exists()


def test_a_tar_cut_between_two_members_is_refused_too(project: Path) -> None:
    path = tarred(project / "packed.tar")
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1]
    path.write_bytes(path.read_bytes()[: last.offset])
    with refusal("images.folder", path, "ends early"):
        prepared(path)


@pytest.mark.parametrize("mode", ["w:gz", "w:xz"])
def test_a_compressed_tar_is_refused_with_what_to_do(mode: str, project: Path) -> None:
    with refusal("images.folder", "packed.tar", "unpacked to a plain one"):
        prepared(tarred(project / "packed.tar", mode=mode))
    with refusal("images.folder", "packed.tgz", "zip, tar, parquet"):
        prepared(tarred(project / "packed.tgz", mode=mode))


def test_a_corrupt_member_is_left_out_and_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tarred(
        project / "packed.tar", CONTENTS | {"dog/9.png": b"no image", "dog/5.png": CONTENTS["dog/0.png"][:60]}
    )
    found = prepared(path)
    assert found.files == NAMES[:-1]
    said = capsys.readouterr().err
    assert f"{path}:" in said
    assert "0x" not in said
    assert set(read_json(Path("data/images/settings.json"))["facts"]["corrupt"]) == {"dog/5.png", "dog/9.png"}


def test_what_happens_to_an_archive_later_is_told_where_it_is_read(project: Path) -> None:
    path = stored(project / "packed.zip")
    found = prepared(path)
    path.write_bytes(path.read_bytes()[:100])
    with refusal(f"{path}:{NAMES[0]}", "sfd prepare-data"):
        ImageReader(found, 16).read([0])
    path.unlink()
    with refusal(f"{path}:{NAMES[0]}", "sfd prepare-data"):
        ImageReader(found, 16).read([0])


def test_nothing_to_learn_from_is_refused(project: Path) -> None:
    with refusal("images.folder", "empty.zip", "no images"):
        prepared(stored(project / "empty.zip", {"readme.txt": b"nothing"}))
    (project / "film.mp4").write_bytes(b"")
    with refusal("images.folder", "film.mp4", "zip, tar, parquet"):
        prepared(project / "film.mp4")

"""`sfd prepare-data`: the demo set, and the check of a user's own ImageFolder."""

import hashlib
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from refusals import refusal
from two_processes import in_two_processes

from sfd_cli.artifacts.verification import verify
from sfd_cli.config import Settings
from sfd_cli.data import image_folder, known_images
from sfd_cli.data.image_sources import ImageSet
from sfd_cli.data.images import ImageManifest, ImageReader
from sfd_cli.distributed.processes import Processes
from sfd_cli.errors import StageFailure
from sfd_cli.files import read_json
from sfd_cli.stages import prepare_data
from sfd_cli.tables import IMAGE_SOURCES


def settings_for(**images: Any) -> Settings:
    return Settings.model_validate({"images": {"size": 64, **images}})


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A user's folder: 4 cats and 3 dogs of several sizes, one dog cut off, one a text file by another name."""
    root = tmp_path / "mine"
    rng = np.random.default_rng(0)
    for name, count in {"cat": 4, "dog": 3}.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 255, (40 + 30 * index, 90, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    whole = (root / "dog/1.png").read_bytes()
    (root / "dog/1.png").write_bytes(whole[: len(whole) // 2])
    (root / "dog/2.png").write_text("not an image")
    return root


def snapshot(root: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in root.rglob("*")
    }


def test_the_demo_set_is_an_image_folder_with_a_manifest():
    result = prepare_data.run(settings_for(limit=90))
    manifest = ImageManifest.load(Path("data/images"))
    assert result["images"] == len(manifest) == 90
    assert result["classes"] == manifest.class_counts()
    assert len(manifest.classes) == 9
    assert {path.suffix for path in Path("data/images").glob("*/*")} == {".png"}
    images = ImageReader(manifest, 64).read(range(90))
    assert images.shape == (90, 3, 64, 64)
    assert images[:, :, 0, 0].float().mean() > 250


def test_the_demo_set_is_the_same_bytes_each_time(tmp_path):
    prepare_data.run(settings_for(limit=20))
    Path("data/images").rename(tmp_path / "first")
    prepare_data.run(settings_for(limit=20))
    files = sorted(path for path in (tmp_path / "first").rglob("*") if path.is_file())
    assert len(files) == 23
    for path in files:
        assert path.read_bytes() == (Path("data/images") / path.relative_to(tmp_path / "first")).read_bytes()


def test_a_finished_demo_set_is_left_alone(capsys):
    first = prepare_data.run(settings_for(limit=10))
    before = snapshot(Path("data/images"))
    assert prepare_data.run(settings_for(limit=10)) == first
    assert "up to date" in capsys.readouterr().err
    assert snapshot(Path("data/images")) == before


def test_an_interrupted_demo_set_is_completed(monkeypatch):
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ImageManifest, "save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare_data.run(settings_for(limit=10))
    assert not read_json(Path("data/images/settings.json"))["complete"]
    prepare_data.run(settings_for(limit=10))
    assert read_json(Path("data/images/settings.json"))["complete"]


def test_a_users_folder_is_checked_and_never_written_to(mine, capsys):
    before = snapshot(mine)
    result = prepare_data.run(settings_for(source="folder", folder=mine))
    assert snapshot(mine) == before
    assert result["classes"] == {"cat": 4, "dog": 1}
    assert (result["images"], result["corrupt files"], result["enlarged"]) == (5, 2, 2)
    assert (result["smallest"], result["largest"]) == ("90 x 40", "90 x 130")
    told = capsys.readouterr().err
    assert f"corrupt, left out: {mine}/dog/1.png" in told
    assert f"{mine}/dog/2.png" in told
    record = read_json(Path("data/images/settings.json"))
    assert set(record["facts"]["corrupt"]) == {"dog/1.png", "dog/2.png"}
    assert "0x" not in told + str(record), "an address in memory says nothing"
    assert record["facts"]["corrupt"]["dog/2.png"] == "no image of a kind that can be read"
    manifest = ImageManifest.load(Path("data/images"))
    assert manifest.files == ["cat/0.png", "cat/1.png", "cat/2.png", "cat/3.png", "dog/0.png"]
    assert ImageReader(manifest, 32).read(range(5)).shape == (5, 3, 32, 32)


def test_with_strict_a_corrupt_image_is_fatal(mine):
    with refusal("images.strict", "2 corrupt images", mine / "dog/1.png", "--strict"):
        prepare_data.run(settings_for(source="folder", folder=mine, strict=True))
    assert not Path("data/images/manifest.json").exists()


def test_a_relative_folder_stays_relative_so_that_the_project_can_move(mine, project, tmp_path, monkeypatch):
    prepare_data.run(settings_for(source="folder", folder=Path("../mine")))
    assert read_json(Path("data/images/manifest.json"))["root"] == "../../../mine"
    monkeypatch.chdir("/")
    (tmp_path / "elsewhere").mkdir()
    mine.rename(tmp_path / "elsewhere" / "mine")
    project.rename(tmp_path / "elsewhere" / "project")
    manifest = ImageManifest.load(tmp_path / "elsewhere/project/data/images")
    assert len(ImageReader(manifest, 8).read([0])) == 1


def test_the_fingerprint_follows_the_contents_of_the_folder(mine, tmp_path):
    def fingerprint(folder: Path) -> str:
        prepare_data.run(settings_for(source="folder", folder=folder))
        return read_json(Path("data/images/settings.json"))["fingerprint"]

    first = fingerprint(mine)
    moved = mine.rename(tmp_path / "moved")
    assert fingerprint(moved) == first
    image = moved / "cat/0.png"
    other = Image.open(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    before = image.stat()
    other.save(image)
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert fingerprint(moved) != first


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images whose bytes are read from now on."""
    names: list[str] = []
    plain = Path.read_bytes

    def listed(path: Path) -> bytes:
        if path.suffix == ".png":
            names.append(path.name)
        return plain(path)

    monkeypatch.setattr(Path, "read_bytes", listed)
    return names


def test_what_has_not_changed_is_not_read_again(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_for(source="folder", folder=str(mine))
    first = prepare_data.run(settings)
    written = snapshot(Path("data/images"))
    read = reads(monkeypatch)
    assert prepare_data.run(settings) == first
    assert sorted(read) == ["1.png", "2.png"], "what cannot be decoded is looked at again"
    assert {path: content for path, (_, content) in snapshot(Path("data/images")).items()} == {
        path: content for path, (_, content) in written.items()
    }

    before = ImageManifest.load(Path("data/images")).fingerprint
    (mine / "cat/3.png").write_bytes((mine / "cat/2.png").read_bytes())
    Image.new("RGB", (50, 60)).save(mine / "cat/new.png")
    (mine / "cat/0.png").unlink()
    read.clear()
    prepare_data.run(settings)
    assert sorted(read) == ["1.png", "2.png", "3.png", "new.png"]
    after = ImageManifest.load(Path("data/images")).fingerprint
    shutil.rmtree("data")
    prepare_data.run(settings)
    assert before != after == ImageManifest.load(Path("data/images")).fingerprint


@pytest.mark.parametrize("damage", [b"", b"no array", "of another kind"])
def test_a_damaged_note_of_what_is_known_only_costs_reading(
    mine: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes | str
) -> None:
    settings = settings_for(source="folder", folder=str(mine))
    first = prepare_data.run(settings)
    note = Path("data/.images.known.npy")
    if isinstance(damage, bytes):
        note.write_bytes(damage)
    else:
        np.save(note, np.zeros((3, 2)))
    read = reads(monkeypatch)
    assert prepare_data.run(settings) == first
    assert len(read) == 7


def test_verify_reads_every_image_and_finds_what_a_disk_changed_in_silence(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_images, "stamp_of", lambda image: zlib.crc32(str(image).encode()))
    settings, folder = settings_for(source="folder", folder=str(mine)), Path("data/images")
    prepare_data.run(settings)
    assert verify(folder)[1] is False
    path = mine / "cat/0.png"
    Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
    prepare_data.run(settings)
    told, damaged = verify(folder)
    assert damaged
    assert "cat/0.png is not what was read" in told
    assert "cat/1.png" not in told
    before = ImageManifest.load(folder).fingerprint
    prepare_data.run(settings)
    assert ImageManifest.load(folder).fingerprint != before, "after that they are read again"
    (mine / "cat/1.png").unlink()
    assert "cat/1.png cannot be read" in verify(folder)[0]


@pytest.mark.parametrize("piece", [1, 2, 1000])
def test_two_processes_check_to_the_bytes_of_one(
    mine: Path, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(image_folder, "PIECE", piece)
    settings = settings_for(source="folder", folder=str(mine))
    alone = prepare_data.run(settings)
    written = told(Path("data"))
    shutil.rmtree("data")

    def work(processes: Processes) -> tuple[Any, int]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("WORLD_SIZE", "2")
            read = reads(patch)
            return prepare_data.run(settings), len(read)

    found = in_two_processes(tmp_path, work)
    assert [result for result, _ in found] == [alone, alone]
    assert [read for _, read in found] == {1: [4, 3], 2: [4, 3], 1000: [7, 0]}[piece]
    assert told(Path("data")) == written


def told(folder: Path) -> dict[str, bytes]:
    """The contents of all files, but for the note of when they were written."""
    return {path: content for path, (_, content) in snapshot(folder).items() if not path.endswith("seen.json")}


def test_processes_that_see_other_images_are_told_and_write_nothing(mine: Path, tmp_path: Path) -> None:
    others = tmp_path / "others"
    shutil.copytree(mine, others)
    (others / "cat/3.png").unlink()

    def work(processes: Processes) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("WORLD_SIZE", "2")
            try:
                return prepare_data.run(settings_for(source="folder", folder=str(others if processes.rank else mine)))
            except (StageFailure, SystemExit) as error:
                return error

    told, silent = in_two_processes(tmp_path, work)
    assert isinstance(told, StageFailure)
    assert "same images" in told.problem
    assert isinstance(silent, SystemExit)
    assert not Path("data/images").exists()


def test_a_limit_is_spread_over_the_classes(mine):
    result = prepare_data.run(settings_for(source="folder", folder=mine, limit=3))
    assert result["classes"] == {"cat": 2, "dog": 1}
    assert ImageManifest.load(Path("data/images")).files == ["cat/0.png", "cat/2.png", "dog/0.png"]


def test_a_class_without_a_whole_image_is_left_out_and_named(mine, capsys):
    (mine / "dog/0.png").unlink()
    assert prepare_data.run(settings_for(source="folder", folder=mine))["classes"] == {"cat": 4}
    assert "dog" in capsys.readouterr().err


def test_a_folder_of_nothing_but_corrupt_images_is_refused(tmp_path):
    (tmp_path / "bad/cat").mkdir(parents=True)
    (tmp_path / "bad/cat/1.jpg").write_bytes(b"\xff\xd8\xff")
    with refusal("images.folder", tmp_path / "bad", "none of the 1 images"):
        prepare_data.run(settings_for(source="folder", folder=tmp_path / "bad"))


@pytest.mark.parametrize("place", ["data/images", "data/images/mine", "data"])
def test_a_folder_where_this_stage_writes_is_refused_untouched(place, mine, project):
    target = project / place
    target.parent.mkdir(parents=True, exist_ok=True)
    mine.rename(target)
    before = snapshot(target)
    with refusal("images.folder", place, "data/images", "paths.images"):
        prepare_data.run(settings_for(source="folder", folder=Path(place)))
    assert snapshot(target) == before


def test_many_classes_are_summed_up_in_one_line(tmp_path):
    for index in range(25):
        folder = tmp_path / f"many/{index:02d}"
        folder.mkdir(parents=True)
        for number in range(1 + index % 3):
            Image.new("RGB", (64, 64), (index, number, 0)).save(folder / f"{number}.png")
    result = prepare_data.run(settings_for(source="folder", folder=tmp_path / "many"))
    assert result["classes"] == "25, 1 to 3 images each"
    assert result["enlarged"] == 0


def grey(settings: Settings) -> ImageSet:
    """A source from outside: one grey image in each of two classes."""
    size = settings.images.size

    def write(folder: Path) -> ImageManifest:
        digests = {}
        for level in (64, 192):
            file = f"level-{level}/0.png"
            (folder / file).parent.mkdir(exist_ok=True)
            Image.new("RGB", (size, size), (level,) * 3).save(folder / file)
            digests[file] = hashlib.sha256((folder / file).read_bytes()).hexdigest()
        manifest = ImageManifest.of(folder, digests)
        manifest.save(folder, root=".")
        return manifest

    return ImageSet({"source": "grey", "size": size}, {}, write, facts={"levels": 2}, shown={"levels": 2})


@pytest.fixture
def grey_source() -> Iterator[None]:
    IMAGE_SOURCES.add("grey", grey)
    yield
    IMAGE_SOURCES.remove("grey")


def test_a_source_from_outside_is_one_entry(grey_source: None, capsys: pytest.CaptureFixture[str]) -> None:
    result = prepare_data.run(settings_for(source="grey"))
    assert result == {"images": 2, "classes": {"level-192": 1, "level-64": 1}, "levels": 2}
    images = ImageReader(ImageManifest.load(Path("data/images")), 64).read([0, 1])
    assert images.float().mean(dim=(1, 2, 3)).tolist() == [192, 64]
    assert read_json(Path("data/images/settings.json"))["facts"]["levels"] == 2
    assert prepare_data.run(settings_for(source="grey")) == result
    assert "up to date" in capsys.readouterr().err


def test_a_source_that_nobody_knows_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="openmoji"):
        settings_for(source="openmojo")

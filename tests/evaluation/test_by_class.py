"""Distances class by class: by their definition, with their counts, or with the reason why there are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from refusals import refusal
from stand_ins import score_by
from tiny_project import CLASSES, SIDE, random_images, tiny_settings, write_models, write_training_images

from sfd_cli.config import Settings
from sfd_cli.data.images import image_files
from sfd_cli.evaluation import features as features_module
from sfd_cli.evaluation.by_class import class_distances, class_notes
from sfd_cli.evaluation.extractor import POOLED, Extractor
from sfd_cli.evaluation.features import FeatureSet
from sfd_cli.evaluation.images import ImageFiles
from sfd_cli.evaluation.labels import Labels
from sfd_cli.evaluation.metric import Compared
from sfd_cli.files import read_json, write_json
from sfd_cli.report.score_table import class_rows, score_tables
from sfd_cli.stages import fid

WIDTH = 3


def colour() -> Extractor:
    """Few features, so that a dozen images are more than there are of them."""
    return Extractor.of("dinov2", WIDTH, torch.device("cpu"), lambda images: images.float().mean((2, 3)) / 20)


def expected_distance(one: np.ndarray, other: np.ndarray) -> float:
    """By the definition."""
    shift = one.mean(axis=0) - other.mean(axis=0)
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    root = scipy.linalg.sqrtm(first @ second)
    return float(shift @ shift + np.trace(first + second - 2 * np.real(root)))


def rows_of(files: list[Path]) -> np.ndarray:
    return np.concatenate([colour()(batch)[POOLED].double().numpy() for batch in ImageFiles(files, SIDE).batches(8)])


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """36 training images of three classes in turn, and 29 samples of sfd's of two of them, 5 to 1."""
    found = tiny_settings(tmp_path)
    write_training_images(found, 36)
    write_models(found)
    random_images(found.paths.samples, [f"{index:06d}.png" for index in range(29)], seed=4, brightness=0.9)
    write_json(found.paths.samples / "labels.json", [0 if index % 6 else 2 for index in range(29)])
    facts = {"fingerprint": "f" * 64, "complete": True, "facts": {"class_names": CLASSES}}
    record = {"num_images": 29, "solver": "euler", "steps": 4, "guidance": "none", "delta_t": 0.3}
    write_json(found.paths.samples / "settings.json", {**facts, "settings": record})
    score_by(monkeypatch, colour)
    return with_fid(found, by_class=True)


def with_fid(settings: Settings, samples: Path | None = None, **section: Any) -> Settings:
    paths = settings.paths.model_copy(update={"samples": samples or settings.paths.samples})
    return settings.model_copy(update={"paths": paths, "fid": settings.fid.model_copy(update=section)})


def by_class(settings: Settings) -> dict[str, dict[str, Any]]:
    fid.run(settings)
    return dict(read_json(settings.paths.metrics / "fid.json")["by_class"])


def test_each_class_has_the_distance_of_its_samples_to_its_images(settings: Settings) -> None:
    found = by_class(settings)
    assert list(found) == CLASSES
    samples = rows_of(image_files(settings.paths.samples))
    for label, name in ((0, "circles"), (2, "triangles")):
        ours = samples[[index % 6 != 0 if label == 0 else index % 6 == 0 for index in range(29)]]
        real = rows_of(image_files(settings.paths.images / name))
        assert found[name]["samples"] == len(ours) == (24 if label == 0 else 5)
        assert found[name]["fd_dinov2_reference"] == len(real) == 12
        assert found[name]["fd_dinov2"] == pytest.approx(expected_distance(ours, real), rel=1e-5)
        matched = found[name]["fd_dinov2_matched"]
        assert (matched["images"], matched["reference_images"]) == (min(len(ours), 6), 6)
        assert {"samples", "real"} <= matched.keys()
        assert found[name]["fd_dinov2_se"] > 0
    assert found["squares"] == {
        "samples": 0,
        "fd_dinov2_reference": 12,
        "fd_dinov2": None,
        "fd_dinov2_reason": found["squares"]["fd_dinov2_reason"],
    }
    assert "found 0" in found["squares"]["fd_dinov2_reason"]


def test_it_is_printed_as_a_line_and_shown_as_a_row_for_each_class(settings: Settings) -> None:
    lines = fid.run(settings)["by_class"]
    stored = read_json(settings.paths.metrics / "fid.json")
    assert list(lines) == CLASSES
    for name in ("circles", "triangles"):
        assert f"{stored['by_class'][name]['fd_dinov2']:.4g}" in lines[name]
        assert f"{stored['by_class'][name]['samples']} samples" in lines[name]
    assert "found 0" in lines["squares"]
    rows = class_rows(stored)
    assert [row["value"] for row in rows][1] == "none"
    assert rows[0]["value"] == f"{stored['by_class']['circles']['fd_dinov2']:.4g}"
    assert rows[0]["real"] == f"{stored['by_class']['circles']['fd_dinov2_matched']['real']:.4g}"
    assert rows[0]["source"] == "24 samples against 12 images"
    assert score_tables(stored)["classes"] == rows
    assert class_rows({}) == []


def test_without_asking_and_without_baselines_there_is_less(settings: Settings) -> None:
    fid.run(with_fid(settings, by_class=False))
    assert "by_class" not in read_json(settings.paths.metrics / "fid.json")
    assert "fd_dinov2_matched" not in by_class(with_fid(settings, baselines=False))["circles"]


def test_folders_and_labels_of_an_npz_tell_the_same_classes(settings: Settings, tmp_path: Path) -> None:
    """A folder that sfd never made, nested as others nest them, its images in an npz, and both as the reference."""
    theirs = tmp_path / "theirs"
    names = [f"{CLASSES[index % 3]}/more/{index:02}.png" for index in range(18)]
    random_images(theirs, names, seed=6)
    (theirs / "readme.txt").write_text("no image")
    files = image_files(theirs)
    (pixels,) = ImageFiles(files).batches(18)
    labels = np.array([CLASSES.index(file.relative_to(theirs).parts[0]) for file in files])
    np.savez(tmp_path / "theirs.npz", arr_0=pixels.permute(0, 2, 3, 1).numpy(), arr_1=labels.astype(np.int32))
    expected = by_class(with_fid(settings, theirs))
    assert [found["samples"] for found in expected.values()] == [6, 6, 6]
    for name in CLASSES:
        pair = (rows_of(image_files(folder / name)) for folder in (theirs, settings.paths.images))
        assert expected[name]["fd_dinov2"] == pytest.approx(expected_distance(*pair), rel=1e-5)
    assert by_class(with_fid(settings, tmp_path / "theirs.npz")) == expected
    some = by_class(with_fid(settings, tmp_path / "theirs.npz", num_images=10))
    assert some == by_class(with_fid(settings, theirs, num_images=10))
    turned = by_class(with_fid(settings, settings.paths.images, reference=theirs))
    packed = by_class(with_fid(settings, settings.paths.images, reference=tmp_path / "theirs.npz"))
    assert turned == packed
    assert turned["circles"]["fd_dinov2"] == pytest.approx(expected["circles"]["fd_dinov2"], rel=1e-6)
    both = by_class(with_fid(settings, tmp_path / "theirs.npz", reference=tmp_path / "theirs.npz"))
    assert list(both) == ["0", "1", "2"]
    assert both["0"]["fd_dinov2"] == pytest.approx(0, abs=1e-6)


def loose(settings: Settings, folder: Path) -> Settings:
    random_images(folder, [f"{index}.png" for index in range(5)], seed=7)
    return with_fid(settings, folder)


def unlabelled(settings: Settings, folder: Path) -> Settings:
    folder.mkdir()
    np.savez(folder / "plain.npz", arr_0=np.zeros((5, SIDE, SIDE, 3), np.uint8), arr_1=np.zeros(5))
    return with_fid(settings, reference=folder / "plain.npz")


def mislabelled(settings: Settings, folder: Path) -> Settings:
    folder.mkdir()
    np.savez(folder / "wrong.npz", arr_0=np.zeros((5, SIDE, SIDE, 3), np.uint8), arr_1=np.full(5, 7))
    return with_fid(settings, folder / "wrong.npz")


def statistics(settings: Settings, folder: Path) -> Settings:
    folder.mkdir()
    np.savez(folder / "statistics.npz", mu=np.zeros(WIDTH), sigma=np.eye(WIDTH))
    return with_fid(settings, reference=folder / "statistics.npz")


def no_distance(settings: Settings, folder: Path) -> Settings:
    return with_fid(settings, scores=["kid"])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (loose, "the samples"),
        (unlabelled, "the reference images"),
        (mislabelled, "label 7"),
        (statistics, "statistics only"),
        (no_distance, "fd"),
    ],
)
def test_where_classes_are_not_known_there_is_a_reason(
    change: Callable[[Settings, Path], Settings], why: str, settings: Settings, tmp_path: Path
) -> None:
    result = fid.run(change(settings, tmp_path / "other"))
    assert result["by_class"] is None
    assert why in result["by_class_reason"]


def test_damaged_labels_are_named(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "theirs.npz"
    np.savez(path, arr_0=np.zeros((5, SIDE, SIDE, 3), np.uint8), arr_1=np.arange(4000))
    content = bytearray(path.read_bytes())
    content[-900] ^= 255
    path.write_bytes(content)
    with refusal(path, "arr_1"):
        fid.run(with_fid(settings, path))


def test_of_more_images_than_rows_are_kept_the_classes_of_the_kept_ones_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "ROWS_KEPT", 30)
    labels = np.arange(50) % 2
    sets = []
    for seed in (0, 1):
        rows = (
            torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(seed))
            + 5 * torch.from_numpy(labels)[:, None]
        )
        sets.append(FeatureSet(WIDTH, 50, seed))
        sets[-1].update(rows)
        assert torch.equal(sets[-1].rows, rows[sets[-1].kept])
    options = tiny_settings(Path()).fid
    found = class_distances({"dinov2": {POOLED: Compared(*sets)}}, Labels(labels), {"dinov2": Labels(labels)}, options)
    for name in ("0", "1"):
        chosen = [one.rows[labels[one.kept] == int(name)].double().numpy() for one in sets]
        assert found["by_class"][name]["samples"] == len(chosen[0]) < 25
        assert found["by_class"][name]["fd_dinov2"] == pytest.approx(expected_distance(*chosen), rel=1e-5)
    assert json.dumps(found)
    assert class_notes(found, {"dinov2": WIDTH}) == []
    (note,) = class_notes(found, {"dinov2": 20})
    assert "2 of 2 classes" in note

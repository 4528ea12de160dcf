"""Several folders in one call: the scores of each by itself, and differences with their errors."""

from __future__ import annotations

from math import hypot
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refusal
from stand_ins import score_by
from tiny_project import SIDE, random_images, tiny_settings, write_models, write_training_images

from sfd_cli.config import Settings
from sfd_cli.evaluation.extractor import Extractor
from sfd_cli.evaluation.images import ImageFiles
from sfd_cli.stages import fid


def colour() -> Extractor:
    """Few features, so that a dozen images are enough for a standard error."""
    return Extractor.of("dinov2", 3, torch.device("cpu"), lambda images: images.float().mean((2, 3)) / 20)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    found = tiny_settings(tmp_path)
    write_training_images(found)
    write_models(found)
    for folder, count, brightness in (("samples", 12, 0.8), ("near", 14, 0.8), ("far", 12, 0.3)):
        random_images(tmp_path / folder, [f"{index}.png" for index in range(count)], count, brightness)
    score_by(monkeypatch, colour)
    return changed(found, tmp_path / "samples", baselines=False)


def changed(settings: Settings, samples: Path, **section: Any) -> Settings:
    paths = settings.paths.model_copy(update={"samples": samples})
    return settings.model_copy(update={"paths": paths, "fid": settings.fid.model_copy(update=section)})


def test_each_folder_has_its_own_scores_and_says_whether_it_differs(settings: Settings, tmp_path: Path) -> None:
    first, near, far = (tmp_path / name for name in ("samples", "near", "far"))
    alone = {path: fid.run(changed(settings, path)) for path in (first, near, far)}
    result = fid.run(changed(settings, first, beside=[near, far]))
    assert {key: value for key, value in result.items() if key != "beside"} == alone[first]
    for path, count, differs in ((near, 14, False), (far, 12, True)):
        found, expected = result["beside"][str(path)], alone[path]
        assert found["samples"] == count
        for key in ("fd_dinov2", "fd_dinov2_se", "kid_dinov2", "precision_dinov2", "recall_dinov2"):
            assert found[key] == expected[key], key
        assert found["fd_dinov2_difference"] == expected["fd_dinov2"] - alone[first]["fd_dinov2"]
        errors = hypot(expected["fd_dinov2_se"], alone[first]["fd_dinov2_se"])
        assert found["fd_dinov2_difference_se"] == pytest.approx(errors)
        assert found["fd_dinov2_differs"] is differs


def test_an_npz_is_scored_as_its_images_in_a_folder_are(settings: Settings, tmp_path: Path) -> None:
    files = sorted((tmp_path / "samples").glob("*.png"))
    (pixels,) = ImageFiles(files, None).batches(12)
    np.savez(tmp_path / "samples.npz", arr_0=pixels.permute(0, 2, 3, 1).numpy())
    for count in (None, 7):
        plain, packed = (
            fid.run(changed(settings, tmp_path / name, num_images=count)) for name in ("samples", "samples.npz")
        )
        assert packed == plain
        assert packed["counts"]["samples"] == (count or 12)


def test_images_of_another_size_and_an_npz_without_images_are_refused(settings: Settings, tmp_path: Path) -> None:
    np.savez(tmp_path / "large.npz", arr_0=np.zeros((4, 2 * SIDE, 2 * SIDE, 3), np.uint8))
    with refusal(tmp_path / "large.npz", SIDE, 2 * SIDE):
        fid.run(changed(settings, tmp_path / "samples", beside=[tmp_path / "large.npz"]))
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(3), sigma=np.eye(3))
    with refusal(tmp_path / "statistics.npz", "arr_0"):
        fid.run(changed(settings, tmp_path / "statistics.npz"))
    with refusal("fid.num_images", 13, 12):
        fid.run(changed(settings, tmp_path / "samples", num_images=13))

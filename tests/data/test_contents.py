"""Hashes of images' contents beside the manifest: of the bytes, in its order, and of no other set."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from refusals import refusal

from sfd_cli.data.contents import CONTENTS, read_contents, write_contents
from sfd_cli.data.images import ImageManifest

DIGESTS = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("b/1.png", "a/2.png", "a/10.png", "a-b/1.png")}


@pytest.fixture
def manifest(tmp_path: Path) -> ImageManifest:
    made = ImageManifest.of(tmp_path, DIGESTS)
    made.save(tmp_path, root=".")
    return made


def test_they_are_read_back_in_the_manifests_order(manifest: ImageManifest, tmp_path: Path) -> None:
    assert read_contents(tmp_path, manifest) is None
    write_contents(tmp_path, manifest, DIGESTS)
    found = read_contents(tmp_path, ImageManifest.load(tmp_path))
    assert found == [hashlib.sha256(name.encode()).digest() for name in manifest.files]
    assert np.load(tmp_path / CONTENTS).shape == (4, 32)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONTENTS, "manifest.json"]


def test_what_is_damaged_or_of_another_set_is_refused(manifest: ImageManifest, tmp_path: Path) -> None:
    write_contents(tmp_path, manifest, DIGESTS)
    path = tmp_path / CONTENTS
    whole = path.read_bytes()
    for content in (whole[:-1], b"", b"\x93NUMPY", whole[:-1] + b"!", np.zeros(3).tobytes()):
        path.write_bytes(content)
        with refusal(path, "sfd prepare-data"):
            read_contents(tmp_path, manifest)
    np.save(path, np.zeros((3, 32), np.uint8))
    with refusal(path, "3", "4 images", "sfd prepare-data"):
        read_contents(tmp_path, manifest)
    np.save(path, np.array([{"a": 1}]), allow_pickle=True)
    with refusal(path, "damaged"):
        read_contents(tmp_path, manifest)
    path.write_bytes(whole)
    other = ImageManifest.of(tmp_path, {name: digest[::-1] for name, digest in DIGESTS.items()})
    with refusal(path, "other images"):
        read_contents(tmp_path, other)

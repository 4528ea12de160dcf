"""Hashes of the contents of images, kept beside their manifest: by these an image is known again under another name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sfd_cli.data.images import AGAIN, ImageManifest, fingerprint_of
from sfd_cli.errors import UserError
from sfd_cli.files import atomic_path

CONTENTS = "contents.npy"


def write_contents(folder: Path, manifest: ImageManifest, digests: Mapping[str, str]) -> None:
    """Keep the SHA-256 (hex) of every image's bytes, in the manifest's order, as uint8 (n, 32)."""
    hashes = np.frombuffer(bytes.fromhex("".join(digests[file] for file in manifest.files)), np.uint8)
    with atomic_path(Path(folder) / CONTENTS) as temporary, open(temporary, "wb") as file:
        np.save(file, hashes.reshape(len(manifest), -1))


def has_contents(folder: Path) -> bool:
    """Whether the source of the images in `folder` keeps the hashes of their contents."""
    return (Path(folder) / CONTENTS).exists()


def read_contents(folder: Path, manifest: ImageManifest) -> list[bytes] | None:
    """SHA-256 of every image's bytes, in the manifest's order; None where its source keeps none.

    Raises:
        UserError: they are damaged, or of other images than the manifest, whose fingerprint covers them.
    """
    if not has_contents(folder):
        return None
    path = Path(folder) / CONTENTS
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise UserError(path, f"is damaged ({' '.join(str(error).split())})", AGAIN) from None
    if found.shape != (len(manifest), 32) or found.dtype != np.uint8:
        raise UserError(path, f"is damaged ({found.shape} {found.dtype} for {len(manifest)} images)", AGAIN)
    hashes = [row.tobytes() for row in found]
    if fingerprint_of(manifest.files, (one.hex() for one in hashes)) != manifest.fingerprint:
        raise UserError(path, "is of other images than the manifest beside it", AGAIN)
    return hashes

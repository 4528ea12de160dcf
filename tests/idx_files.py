"""Fashion-MNIST's training files in miniature, as its IDX format says: kind and sides, big-endian, then the bytes."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def write_idx(path: Path, values: np.ndarray, kind: int = 0x08) -> None:
    """One array as an IDX file, packed where the name ends so."""
    content = struct.pack(f">{1 + values.ndim}I", kind << 8 | values.ndim, *values.shape) + values.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_training_set(folder: Path, count: int, packed: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Random images of 28 x 28 pixels, their labels the ten classes in turn."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = np.arange(count, dtype=np.uint8) % 10
    suffix = ".gz" if packed else ""
    write_idx(folder / f"{IMAGES}{suffix}", pixels)
    write_idx(folder / f"{LABELS}{suffix}", labels)
    return pixels, labels

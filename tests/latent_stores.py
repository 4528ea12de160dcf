"""Latent stores of known streams."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sfd_cli.data.shards import StoreWriter
from sfd_cli.data.store import Field, Store


def store_of(
    folder: Path,
    texture: Tensor,
    semantic: Tensor | None,
    labels: list[int] | None = None,
    mean: float = 0.0,
    std: float = 1.0,
) -> Store:
    """A store of these raw latents, (n, C, h, w) each, with the same statistics for all channels."""
    streams = {"texture": texture} | ({} if semantic is None else {"semantic": semantic})
    fields = {name: Field((1, *x.shape[1:])) for name, x in streams.items()}
    count, channels = len(texture), sum(x.shape[1] for x in streams.values())
    writer = StoreWriter(folder, fields, count, 64, "latents", {"image_size": 16})
    for shard in range(writer.shard_count):
        rows = writer.rows(shard)
        arrays = {name: x[rows.start : rows.stop, None].numpy().astype(np.float16) for name, x in streams.items()}
        writer.write_shard(shard, arrays)
    labels = labels or [0] * count
    statistics = {"mean": np.full(channels, mean), "std": np.full(channels, std)}
    files, classes = [f"{index}.png" for index in range(count)], [f"class {label}" for label in range(max(labels) + 1)]
    writer.finish(labels, files, range(count), classes, statistics)
    return Store(folder)


def normal(count: int, channels: int, side: int = 2, seed: int = 0) -> Tensor:
    """Standard normal latents (n, C, h, w)."""
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed))

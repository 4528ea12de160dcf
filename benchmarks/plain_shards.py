"""The plain way to keep latents, the baseline of latent_store.py: safetensors shards, opened for every sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset

Key = tuple[int, int]
"""Position of an image and whether it is flipped (0 or 1)."""


def write_shard(path: Path, arrays: dict[str, np.ndarray], labels: np.ndarray) -> None:
    """Arrays (n, 2, ...) of one shard, axis 1 being (as is, flipped), as the reference lays them out."""
    names = {"texture": "latents", "semantic": "latents_sv", "features": "feats_dino"}
    tensors = {"labels": torch.from_numpy(labels)}
    for name, array in arrays.items():
        for flip, suffix in enumerate(("", "_flip")):
            values = torch.from_numpy(array[:, flip])
            if name == "features":  # (n, N, D) -> (n, D, h, w)
                side = round(values.shape[1] ** 0.5)
                values = values.transpose(1, 2).unflatten(2, (side, side))
            tensors[names[name] + suffix] = values.contiguous()
    save_file(tensors, path)


class PlainShards(Dataset[tuple[Tensor, ...]]):
    """Normalised latents, label and, if asked for, features of one image; a data set for torch's DataLoader.

    The flip comes with the index and is not drawn here, so that another reader can be given the same ones.

    Args:
        folder: holds `shard-NNNNN.safetensors`.
        shard_size: images per shard.
        mean: per channel of the composite, (C, 1, 1) float32.
        std: likewise.
        features: also give the stored features.
    """

    def __init__(self, folder: Path, shard_size: int, mean: Tensor, std: Tensor, features: bool) -> None:
        self.files = [str(path) for path in sorted(folder.glob("shard-*.safetensors"))]
        self.shard_size, self.mean, self.std, self.features = shard_size, mean, std, features

    def __getitem__(self, key: Key) -> tuple[Tensor, ...]:
        index, flipped = key
        shard, row = divmod(index, self.shard_size)
        suffix = "_flip" if flipped else ""
        with safe_open(self.files[shard], framework="pt", device="cpu") as file:
            texture = file.get_slice("latents" + suffix)[row : row + 1][0]
            semantic = file.get_slice("latents_sv" + suffix)[row : row + 1][0]
            label = file.get_slice("labels")[row : row + 1][0]
            features = (file.get_slice("feats_dino" + suffix)[row : row + 1][0],) if self.features else ()
        latent = (torch.cat([texture, semantic]).float() - self.mean) / self.std
        return (latent, label, *features)

"""The composite latents of a store, as the transformer sees them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sfd_cli.data.store import INDEX, Store
from sfd_cli.diffusion.latents import LatentSpace, Streams
from sfd_cli.errors import UserError


def space_of_store(store: Store, semantics: bool = True) -> LatentSpace:
    """Layout and statistics of a latent store; without `semantics`, of its textures alone.

    A store that has no semantics has 0 semantic channels.

    Raises:
        UserError: it is no latent store, or its statistics cannot normalise anything.
    """
    missing = [name for name in ("mean", "std") if name not in store.statistics]
    if "texture" not in store.fields or missing:
        raise UserError(
            store.folder, "holds no latents with their statistics", "run `sfd encode-latents`, or check the path"
        )
    texture = store.fields["texture"].shape  # (flips, C_z, h, w)
    semantic = store.fields["semantic"].shape[1] if semantics and "semantic" in store.fields else 0
    layout = LatentSpace(texture[1], semantic, texture[-1])
    try:
        return layout.scaled(*(store.statistics[name][: layout.channels].tolist() for name in ("mean", "std")))
    except ValueError as error:
        raise UserError(store.folder / INDEX, f"is damaged ({error})", "run `sfd encode-latents` again") from None


def read_latents(store: Store, rows: np.ndarray, space: LatentSpace) -> Tensor:
    """Normalised composite latents (n, C, h, w) float32 of images as they are, not mirrored."""
    flips = np.zeros(len(rows), np.int64)
    texture = torch.from_numpy(store.read("texture", rows, flips))
    semantic = torch.from_numpy(store.read("semantic", rows, flips)) if space.semantic else texture[:, :0]
    return space.join(Streams(texture, semantic))

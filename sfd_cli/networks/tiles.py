"""Square grids of tokens cut into tiles, each a sequence of its own, and laid side by side again."""

from __future__ import annotations

from torch import Tensor


def split_tiles(tokens: Tensor, tiles: int) -> Tensor:
    """Tokens (B, N, D), row-major over a square grid, as a sequence per tile: (B * tiles^2, N / tiles^2, D)."""
    side = round(tokens.shape[1] ** 0.5)
    grid = tokens.unflatten(1, (tiles, side // tiles, tiles, side // tiles))  # (B, row, y, column, x, D)
    return grid.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def join_tiles(tokens: Tensor, tiles: int) -> Tensor:
    """The inverse of `split_tiles`: (B * tiles^2, n, D) -> (B, tiles^2 * n, D), row-major over the whole grid."""
    side = round(tokens.shape[1] ** 0.5)
    grid = tokens.unflatten(1, (side, side)).unflatten(0, (-1, tiles, tiles))  # (B, row, column, y, x, D)
    return grid.transpose(2, 3).flatten(1, 4)

"""Rules that the numbers of an architecture keep, in one place and without PyTorch.

Settings are checked by them when they are read, configurations when a network is built or a model folder is opened.
All raise SettingError with the name of the field; whoever knows the section or file it came from completes it.
"""

from __future__ import annotations

from collections.abc import Sequence

from sfd_cli.errors import SettingError

DECODER_PATCH = 2
"""Side of the squares of pixels that a decoder behind a linear code folds into channels."""


WIDEST, DEEPEST = 2**20, 2**10
"""Channels of anything, and layers of a stack: beyond what anybody trains, yet built in no time without weights."""
LARGEST_TABLE = 2**30
"""Numbers in the table of a transformer's positions."""


def require_counts(least: int = 1, most: int = WIDEST, **counts: int) -> None:
    """Every count, by the name of its field, is one that a network may have."""
    for key, count in counts.items():
        if not least <= count <= most:
            raise SettingError(key, f"{count} is not from {least} to {most:,}", "use another number")


def require_heads(width: int, heads: int) -> None:
    """Attention heads share the width evenly."""
    require_counts(width=width, heads=heads)
    if width % heads:
        raise SettingError("heads", f"{heads} heads do not divide width {width}", "change one of them")


def require_transformer(*, width: int, depth: int, heads: int, rope: bool, repa_depth: int) -> None:
    """A LightningDiT of these numbers can be built; `repa_depth` 0 is no REPA projector."""
    require_heads(width, heads)
    require_counts(0, DEEPEST, depth=depth)
    if rope and (width // heads) % 4:
        problem = f"2-D rotary positions need width / heads ({width // heads}) divisible by 4"
        raise SettingError("heads", problem, "use another number, or rope: false")
    if width % 4:
        raise SettingError("width", f"2-D sin-cos positions need a multiple of 4, not {width}", "use another width")
    require_block("repa_depth", repa_depth, depth)


def require_block(key: str, number: int, depth: int) -> None:
    """`number`, the value of `key`, is that of a block, counted from 1; 0 is none."""
    if not 0 <= number <= depth:
        problem = f"{number} is past the last of {depth} blocks (depth)"
        raise SettingError(key, problem, "choose a block of the network, counted from 1")


def require_patches(grid: int, patch_size: int) -> None:
    """Patches cover the latent grid."""
    require_counts(grid=grid, patch_size=patch_size)
    if grid % patch_size:
        problem = f"{patch_size} does not divide the {grid}x{grid} grid"
        raise SettingError("patch_size", problem, "use 1, or another image size")


def require_positions(side: int, width: int) -> None:
    """The table of positions, one of this width for every token of a grid, can be held."""
    if side**2 * width > LARGEST_TABLE:
        raise SettingError("grid", f"{side} x {side} tokens are too many for width {width}", "use a smaller one")


def require_levels(block_channels: Sequence[int], norm_groups: int, attention_levels: Sequence[int]) -> None:
    """The levels of a convolutional autoencoder fit its norms, and attention is at levels that there are."""
    require_counts(most=DEEPEST, block_channels=len(block_channels))
    _require_groups("block_channels", block_channels, norm_groups)
    for level in attention_levels:
        if not 0 <= level < len(block_channels):
            problem = f"{level} is not one of the {len(block_channels)} levels of block_channels"
            raise SettingError("attention_levels", problem, f"give levels from 0 to {len(block_channels) - 1}")


def require_decoder(decoder_channels: Sequence[int], norm_groups: int) -> None:
    """The levels of a decoder behind a linear code fit its norms; no levels are no decoder."""
    _require_groups("decoder_channels", decoder_channels, norm_groups)


def _require_groups(key: str, widths: Sequence[int], norm_groups: int) -> None:
    require_counts(norm_groups=norm_groups)
    for channels in widths:
        require_counts(**{key: channels})
        if channels % norm_groups:
            problem = f"{norm_groups} does not divide {channels} of {key}"
            raise SettingError("norm_groups", problem, "change one of them")


def require_halving(size: int, decoder_channels: Sequence[int]) -> None:
    """Every level of a decoder but the last halves images of this side evenly, and so their squares that it folds."""
    multiple = DECODER_PATCH * 2 ** (len(decoder_channels) - 1) if decoder_channels else 1
    if size % multiple:
        problem = f"{len(decoder_channels)} levels take images whose side is a multiple of {multiple}, not {size}"
        raise SettingError("decoder_channels", problem, "use fewer levels, or another images.size")


def require_components(feature_width: int, channels: int, what: str = "tokens") -> None:
    """Tokens, or what else, have as many principal components as they are wide."""
    require_counts(channels=channels)
    if channels > feature_width:
        problem = f"{feature_width} wide {what} have no {channels} principal components"
        raise SettingError("channels", problem, f"use {feature_width} at most")

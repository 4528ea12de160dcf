"""Looking at the tensors of a foreign state dict before it is known to fit anything."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from sfd_cli.errors import UserError


def shape_of(weights: Mapping[str, Tensor], key: str, dimensions: int, kind: str) -> tuple[int, ...]:
    """Shape of a tensor that the architecture is read off.

    Args:
        weights: the state dict.
        key: name of the tensor.
        dimensions: how many axes it must have.
        kind: what the checkpoint is taken for, with its article, e.g. "a LightningDiT".

    Raises:
        UserError: it is missing, empty or has another number of axes.
    """
    if key not in weights:
        raise UserError(f"the checkpoint is not {kind}: {key} is missing")
    shape = tuple(weights[key].shape)
    if len(shape) != dimensions or 0 in shape:
        raise UserError(f"the checkpoint is not {kind}: {key} has shape {shape}, but {dimensions} axes are expected")
    return shape


def count_numbers(weights: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers the first group of `pattern` takes, matched at the start of the names."""
    return len({match[1] for key in weights if (match := re.match(pattern, key))})


def renamed(
    weights: Mapping[str, Tensor], rename: Callable[[str], str], name_of: Callable[[str], str]
) -> tuple[dict[str, Tensor], Callable[[str], str]]:
    """The tensors under our names, and what a name of ours is called in the file, for messages.

    Args:
        weights: the state dict.
        rename: our name of one of its keys; a stranger's comes back as it is.
        name_of: the file's name of a key of ours, where the file does not have it.

    Raises:
        UserError: two keys are names of the same weight.
    """
    theirs: dict[str, str] = {}
    for key in weights:
        ours = rename(key)
        if ours in theirs:
            raise UserError(f"{theirs[ours]} and {key} of the checkpoint are the same weight; take one of them out")
        theirs[ours] = key
    return {ours: weights[key] for ours, key in theirs.items()}, lambda key: theirs.get(key) or name_of(key)

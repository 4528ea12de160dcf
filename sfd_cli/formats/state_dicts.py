"""Looking at the tensors of a state dict before it is known to fit anything, and checking that it fits."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from sfd_cli.formats.format import FormatError


def shape_of(weights: Mapping[str, Tensor], key: str, dimensions: int, kind: str) -> tuple[int, ...]:
    """Shape of the tensor `key` that the architecture is read off.

    Args:
        weights: the state dict.
        key: name of the tensor.
        dimensions: how many axes it must have, else FormatError.
        kind: what the checkpoint is taken for, with its article, e.g. "a LightningDiT".
    """
    if key not in weights:
        raise FormatError(f"is not {kind}: {key} is missing")
    shape = tuple(weights[key].shape)
    if len(shape) != dimensions or 0 in shape:
        raise FormatError(f"is not {kind}: {key} has shape {shape}, but {dimensions} axes are expected")
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
        rename: our name of one of its keys; an unknown one comes back as it is.
        name_of: the file's name of a key of ours, where the file does not have it.

    Raises:
        FormatError: two keys are names of the same weight.
    """
    theirs: dict[str, str] = {}
    for key in weights:
        ours = rename(key)
        if ours in theirs:
            raise FormatError(f"{theirs[ours]} and {key} are the same weight", "take one of them out")
        theirs[ours] = key
    return {ours: weights[key] for ours, key in theirs.items()}, lambda key: theirs.get(key) or name_of(key)


def require_fit(module: nn.Module, state_dict: Mapping[str, Tensor], name_of: Callable[[str], str] = str) -> None:
    """Check that `state_dict` has just the module's names and shapes.

    Args:
        module: what the weights are for.
        state_dict: the weights, under the module's names.
        name_of: what a key, of the module or of `state_dict`, is called in the file.

    Raises:
        FormatError: names the first few keys that do not fit.
    """
    expected = module.state_dict()
    problems = [f"{name_of(key)} is missing" for key in expected if key not in state_dict]
    problems += [f"{name_of(key)} is unknown" for key in state_dict if key not in expected]
    problems += [
        f"{name_of(key)} is {tuple(state_dict[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in state_dict and state_dict[key].shape != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise FormatError(f"does not fit a {type(module).__name__}: {'; '.join(problems[:3])}{more}")

"""The fixture files in tests/reference: small networks, inputs, and what the reference implementations made of them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

FOLDER = Path(__file__).parent / "reference"


@cache
def contents(file: str) -> dict[str, Tensor]:
    """Everything that the file of this stem holds."""
    if file == "center_crop":
        with np.load(FOLDER / "center_crop.npz") as arrays:
            return {key: torch.from_numpy(arrays[key]) for key in arrays}
    with safe_open(FOLDER / f"{file}.safetensors", "pt") as tensors:
        return {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118 (not a dict)


@cache
def descriptions(file: str) -> dict[str, dict[str, Any]]:
    """The configurations of the networks in a file, by the prefix of their keys, or `config` where there is one."""
    with safe_open(FOLDER / f"{file}.safetensors", "pt") as tensors:
        return {key: json.loads(value) for key, value in tensors.metadata().items()}


def part(file: str, prefix: str) -> dict[str, Tensor]:
    """The tensors of a file whose keys begin with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in contents(file).items() if key.startswith(prefix)}

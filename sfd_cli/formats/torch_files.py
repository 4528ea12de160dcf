"""Weights files: safetensors and torch's own, read without executing anything in them."""

from __future__ import annotations

import pickle
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sfd_cli.errors import UserError
from sfd_cli.formats.restricted_pickle import ZIP_MAGIC, RefusedError, StandIn, load_with_stand_ins

TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")


def read_weights_file(path: Path) -> dict[str, Any]:
    """What a weights file holds: tensors by name, or the dict a checkpoint wraps them in.

    Reads `.safetensors`, and `.pt`, `.pth`, `.ckpt`, `.bin` without executing anything pickled in them. Entries that
    are configuration objects (omegaconf, argparse ...) are left out. Tensors of a `.pt` in torch's zip format are
    mapped, so the gigabytes of an unused optimizer state are never read.

    Raises:
        UserError: missing, damaged, of another kind, or asking for something that is no data.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(path, "is no file", "check the path")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix not in TORCH_SUFFIXES:
        raise UserError(path, "is no weights file", f"give a .safetensors, {', '.join(TORCH_SUFFIXES)}")
    loaded = _read_torch(path)
    if not isinstance(loaded, dict):
        kind = "settings object" if isinstance(loaded, StandIn) else type(loaded).__name__
        raise UserError(path, f"holds a {kind}, not weights by name", "save its state_dict()")
    return loaded


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name.

    Raises:
        UserError: the file is missing, damaged or cut.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(path, f"is damaged or truncated ({_first_line(error)})", "make or fetch it again") from None


def _read_torch(path: Path) -> Any:
    with open(path, "rb") as file:
        mmap = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC  # the older format cannot be mapped
    try:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of pickle protocols; what they lead to is said below
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        except pickle.UnpicklingError:
            return load_with_stand_ins(path, mmap)
    except RefusedError as refused:
        problem = f"asks for {refused.name}, which is code and not data, so it is not read"
        remedy = "save its tensors alone where it was made: torch.save(model.state_dict(), 'weights.pt')"
        raise UserError(path, problem, remedy) from None
    except pickle.UnpicklingError as error:
        # torch puts its advice first and the reason last, often followed by a link.
        lines = [line.strip() for line in str(error).splitlines() if line.strip() and "https://" not in line]
        reason = lines[-1] if lines else type(error).__name__
        problem = f"is no torch weights file, or not pickled as torch.save does it ({reason})"
        raise UserError(path, problem, "fetch it again, or save its state_dict() with torch.save") from None
    except Exception as error:  # bytes at random make torch's reader fail in any way
        if _is_program_or_tar(path):
            raise UserError(path, "is a program, or of a format too old to be read", "save its state_dict()") from None
        raise UserError(path, f"is damaged or truncated ({_first_line(error)})", "fetch or copy it again") from None


def _is_program_or_tar(path: Path) -> bool:
    """Whether it is a TorchScript archive, or the tar that torch wrote before 2017."""
    try:
        if not zipfile.is_zipfile(path):
            return tarfile.is_tarfile(path)
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception:  # damaged in any way
        return False


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__

"""A model that is there: its folder, what that says, the identity of its bytes, and its network."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import torch
from torch import nn

from sfd_cli.errors import UserError
from sfd_cli.files import fingerprint
from sfd_cli.formats.model_folder import TABLES, load_config, load_model, load_model_config
from sfd_cli.weights.fetch import digest

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Model(Generic[M]):
    """A model folder that is there; its weights are read when they are asked for.

    Attributes:
        source: what it was opened as, for messages.
        folder: the model folder: `config.json` and a file for each set of weights.
        weights: which set of weights, "ema" or "model".
    """

    source: str
    folder: Path
    weights: str

    @cached_property
    def config(self) -> Any:
        """The configuration dataclass of the network."""
        return load_model_config(self.folder)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What its `config.json` says beside type and architecture: `statistics`, `delta_t`, `classes` ..."""
        return {key: value for key, value in load_config(self.folder).items() if key not in ("type", "config")}

    @cached_property
    def fingerprint(self) -> str:
        """Of the model's own bytes: more training changes them while its settings stay the same.

        Raises:
            UserError: it has no such weights.
        """
        return fingerprint({"description": load_config(self.folder), "weights": self.digest})

    @property
    def digest(self) -> str:
        """SHA-256 of the file with these weights.

        Raises:
            UserError: it has no such weights.
        """
        return digest(self._file())

    def load(self) -> M:
        """The network with these weights, on the CPU, frozen, in evaluation mode.

        Raises:
            UserError: it has no such weights, or something is damaged.
        """
        return cast(M, load_model(self.folder, self._file().stem))

    def _file(self) -> Path:
        path = self.folder / f"{self.weights}.safetensors"
        if not path.exists():
            stems = sorted(file.stem for file in self.folder.glob("*.safetensors"))
            present = ", ".join(stem for stem in stems if not stem.endswith(TABLES)) or "none"
            raise UserError(
                self.source,
                f"holds no {path.name} (weights present: {present})",
                "run the stage that makes it, or choose --weights",
            )
        return path


@dataclass(frozen=True)
class LoadedModel(Model[M]):
    """A model whose network is in memory."""

    network: nn.Module

    @cached_property
    def fingerprint(self) -> str:
        """Of the network's weights, whatever the file was that they came from."""
        found = hashlib.sha256()
        for name, tensor in sorted(self.network.state_dict().items()):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return found.hexdigest()

    def load(self) -> M:
        """The network itself."""
        return cast(M, self.network)

"""What a checkpoint format is: how a file in it is recognised, read into our terms, and written again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sfd_cli.errors import UserError
from sfd_cli.formats.torch_files import read_weights_file

if TYPE_CHECKING:
    from sfd_cli.formats.reference_statistics import LatentStatistics

WRAPPERS = ("ema", "model", "model_state_dict", "state_dict")
"""Keys under which checkpoints keep their state dicts."""


class FormatError(Exception):
    """Content that does not fit a format: problem and remedy as of UserError, which `about` makes of it."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.problem, self.remedy = problem, remedy

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}" if self.remedy else self.problem


@contextmanager
def about(subject: object) -> Iterator[None]:
    """Turn a FormatError inside the block into a UserError about `subject`, usually a path."""
    try:
        yield
    except FormatError as error:
        raise UserError(subject, error.problem, error.remedy) from None


@dataclass(frozen=True)
class Hints:
    """What no tensor of a checkpoint tells; None where it is not known. A format ignores hints that it does not list.

    Attributes:
        heads: attention heads, of a LightningDiT without q/k norms and of every Semantic VAE.
        semantic_channels: how many of the last channels are semantic, of a LightningDiT with two times; None: as many
            as the semantic statistics have.
        repa_depth: the block that a REPA projector reads; None: 2.
        delta_t: the offset a LightningDiT was trained with; None: 0.3 with two times, else 0.
        texture_statistics: of the texture latents that a LightningDiT was trained on.
        semantic_statistics: of its semantic latents.
        tiles: of the encoder whose tokens a Semantic VAE compresses; None: 1.
        sizes: channels, width and depth of the Semantic VAE that `heads` are the heads of; a checkpoint of other
            sizes is refused, since its heads must be others too. None: any.
        space_to_depth: how the latent of a texture VAE is folded; None: not.
        texture_channels: of the transformer that a texture VAE decodes for, which tells the folding better.
    """

    heads: int | None = None
    semantic_channels: int | None = None
    repa_depth: int | None = None
    delta_t: float | None = None
    texture_statistics: LatentStatistics | None = None
    semantic_statistics: LatentStatistics | None = None
    tiles: int | None = None
    sizes: Mapping[str, int] | None = None
    space_to_depth: int | None = None
    texture_channels: int | None = None


@dataclass(frozen=True)
class Content:
    """What the file or folder at `path` holds, before anything is known about its format; read when first used."""

    path: Path

    @cached_property
    def checkpoint(self) -> dict[str, Any]:
        """The dict in the file: a state dict, or one that holds state dicts."""
        return read_weights_file(self.path)

    @cached_property
    def state_dicts(self) -> dict[str, dict[str, Tensor]]:
        """State dicts by the key that wraps them, "" for a bare one; at least one. See `unwrap`."""
        return unwrap(self.checkpoint)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The first state dict."""
        return next(iter(self.state_dicts.values()))

    def has(self, *beginnings: str) -> bool:
        """Whether the name of any tensor begins so."""
        return any(name.startswith(beginnings) for name in self.tensors)


@dataclass(frozen=True)
class ModelParts:
    """A model in our terms: what a model folder holds.

    Attributes:
        kind: "LightningDiT", "SemanticVAE", "TextureVAE", "VisualEncoder" or "LatentStatistics".
        config: its configuration dataclass.
        weights: state dicts by file stem. Of a LightningDiT `ema` and `model` as far as there are both, and
            `ema_tables` and `model_tables` where its tables of positions are not the ones computed here; of latent
            statistics none; else `model`.
        facts: further keys of `config.json`.
    """

    kind: str
    config: Any
    weights: dict[str, dict[str, Tensor]]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The state dict of a model that has one only.

        Raises:
            FormatError: it is not there.
        """
        if "model" not in self.weights:
            raise FormatError("holds no model.safetensors", "run what makes it again")
        return self.weights["model"]


@dataclass(frozen=True)
class Format:
    """One checkpoint format; `FORMATS` in `sfd_cli.tables` lists them, in the order in which they are tried.

    Attributes:
        kind: of the model, as in `ModelParts`.
        config: the configuration dataclass of that kind.
        matches: whether content is in this format. Must be cheap and may not raise anything but FormatError.
        read: content and hints -> the model. Raises FormatError by the checkpoint's own names of its keys.
        write: the model -> what `torch.save` is to write, by what is added to the stem of the target: `{"": content}`,
            and more entries for files that belong beside it. None: the format is only read.
        hints: names of the fields of `Hints` that `read` uses.
    """

    kind: str
    config: type
    matches: Callable[[Content], bool]
    read: Callable[[Content, Hints], ModelParts]
    write: Callable[[ModelParts], dict[str, dict[str, Any]]] | None = None
    hints: tuple[str, ...] = ()


def unwrap(checkpoint: Mapping[str, Any], wrappers: tuple[str, ...] = WRAPPERS) -> dict[str, dict[str, Tensor]]:
    """State dicts by the key that wraps them, in the order of `wrappers`; "" for a bare one.

    Names lose the prefixes that DDP and torch.compile put before them.

    Raises:
        FormatError: something in there is no tensor with a name, or there is nothing.
    """
    wrapped = {key: checkpoint[key] for key in wrappers if isinstance(checkpoint.get(key), Mapping)}
    found = {}
    for wrapper, tensors in (wrapped or {"": checkpoint}).items():
        others = [key for key, value in tensors.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
        if others or not tensors:
            where = f" under {wrapper!r}" if wrapper else ""
            what = f"{others[0]!r}, which is no tensor with a name" if others else "nothing"
            raise FormatError(f"holds{where} {what}", "save the state dict alone")
        found[wrapper] = {re.sub(r"^(module\.|_orig_mod\.)+", "", key): tensor for key, tensor in tensors.items()}
    return found

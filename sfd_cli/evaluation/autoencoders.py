"""How much the two autoencoders of a system lose: a bound on its samples that no training of the transformer moves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from sfd_cli.artifacts.fingerprints import finished
from sfd_cli.config import Settings
from sfd_cli.data.images import ImageManifest, ImageReader
from sfd_cli.data.store import Store
from sfd_cli.distributed.processes import ALONE, Processes
from sfd_cli.errors import UserError
from sfd_cli.evaluation.dealing import gathered, in_turn, rounds_of
from sfd_cli.evaluation.held_out import batches_of, semantic_parts, semantic_summary
from sfd_cli.evaluation.image_fidelity import psnr, ssim
from sfd_cli.evaluation.lpips import open_lpips
from sfd_cli.evaluation.reasons import NotComputable, Scores, unavailable
from sfd_cli.evaluation.reconstructions import TextureCodec
from sfd_cli.evaluation.unseen import unseen_rows
from sfd_cli.progress import progress
from sfd_cli.weights.models import SemanticCompressor, open_semantic, open_texture_vae

TEXTURE_SCORES = ("psnr", "ssim", "lpips")
SEMANTIC_SCORES = ("mse", "cosine")

Similarity = Callable[[Tensor, Tensor], Tensor]
"""Two uint8 images (n, 3, H, W) each to a number for each pair, (n,)."""


def score_autoencoders(settings: Settings, most: int, processes: Processes = ALONE) -> dict[str, Scores]:
    """What texture codec and Semantic VAE lose, on images that they were not fitted to.

    Args:
        settings: the sections `fid`, `images`, `semvae`, `texture_vae`, `encoder`, `paths` and `runtime` are read.
        most: images at most, evenly spread.
        processes: that take batches of the images in turn, and all call this alike.

    Returns:
        `texture`: PSNR in dB, SSIM and LPIPS, means over images of 8-bit originals and reconstructions of posterior
        means. `semantic`: mean squared error and cosine of patch tokens. Of each how many `images` and what they are,
        and the `model`. What cannot be computed is None with its reason. It is the first process's, others get nothing.
    """
    device = processes.device(settings.runtime.device)
    found: dict[str, Scores] = {}
    kinds: tuple[tuple[str, type[_Texture] | type[_Semantic], tuple[str, ...]], ...] = (
        ("texture", _Texture, TEXTURE_SCORES),
        ("semantic", _Semantic, SEMANTIC_SCORES),
    )
    for name, kind, keys in kinds:
        try:
            found[name] = _open(kind, settings, most, device, processes).scores(processes)
        except (UserError, NotComputable) as error:
            found[name] = unavailable(keys, str(error))
    return found if processes.is_main else {}


T = TypeVar("T")


def _open(
    kind: type[_Texture] | type[_Semantic], settings: Settings, most: int, device: torch.device, processes: Processes
) -> _Texture | _Semantic:
    """What scores one of them: where one process cannot open it, none does.

    Raises:
        UserError, NotComputable: it cannot be opened.
    """
    opened: _Texture | _Semantic | None = None
    why: Exception = NotComputable("another process cannot open it")
    try:
        opened = kind.open(settings, most, device)
    except (UserError, NotComputable) as error:
        why = error
    if processes.any(opened is None) or opened is None:
        raise why
    return opened


@dataclass(frozen=True)
class _Texture:
    """The texture codec, and the images that it is scored on.

    Attributes:
        codec: that they go through.
        reader: of the images.
        rows: of those that are scored.
        size: of a batch.
        similarities: of an image that came back to what it was.
        told: what is known before, among it why others are not computed.
    """

    codec: TextureCodec
    reader: ImageReader
    rows: np.ndarray
    size: int
    similarities: dict[str, Similarity]
    told: Scores

    @classmethod
    def open(cls, settings: Settings, most: int, device: torch.device) -> Self:
        manifest = ImageManifest.load(settings.paths.images)
        model = open_texture_vae(settings)
        rows, what = unseen_rows(model, "images", manifest.fingerprint, len(manifest), most)
        codec = TextureCodec.open(settings, device)
        codec.require_side(settings.images.size)
        told: Scores = {"model": _name(model.source, codec.fingerprint), "images": len(rows), "those": what}
        similarities: dict[str, Similarity] = {"psnr": psnr, "ssim": ssim}
        try:
            similarities["lpips"] = open_lpips(settings, codec.device)
        except (UserError, NotComputable) as error:
            told |= unavailable(["lpips"], str(error))
        reader = ImageReader(manifest, settings.images.size, settings.runtime.threads)
        return cls(codec, reader, rows, settings.fid.batch_size, similarities, told)

    def scores(self, processes: Processes) -> Scores:
        batches = batches_of(self.rows, self.size)
        found = _every(self._parts(in_turn(batches, processes)), "reconstructions", len(batches), processes)
        told, means = dict(self.told), {}
        for name in found[0] if found else ():
            values = [value for one in found if isinstance(value := one[name], Tensor)]
            if len(values) == len(found):
                means[name] = torch.cat(values).mean().item()
            else:
                told |= unavailable([name], next(value for one in found if isinstance(value := one[name], str)))
        return told | means

    def _parts(self, batches: Iterable[np.ndarray]) -> Iterator[dict[str, Tensor | str]]:
        """Of every batch its similarities (n,), or why one has none."""
        for pixels in self.reader.iterate([batch.tolist() for batch in batches]):
            returned = self.codec.reconstruct(pixels)
            yield {name: _of(found, returned, pixels) for name, found in self.similarities.items()}


def _of(similarity: Similarity, images: Tensor, others: Tensor) -> Tensor | str:
    try:
        return similarity(images, others).cpu()
    except NotComputable as error:
        return str(error)


@dataclass(frozen=True)
class _Semantic:
    """The Semantic VAE on its device, and the patch tokens that it is scored on; otherwise as `_Texture`."""

    network: SemanticCompressor
    store: Store
    rows: np.ndarray
    size: int
    device: torch.device
    told: Scores

    @classmethod
    def open(cls, settings: Settings, most: int, device: torch.device) -> Self:
        if settings.semvae.compressor == "none":
            raise NotComputable("there are no semantics (semvae.compressor: none)")
        fingerprint = finished(settings.paths.features, "sfd extract-features").fingerprint
        store, model = Store(settings.paths.features), open_semantic(settings)
        rows, what = unseen_rows(model, "features", fingerprint, len(store), most)
        network = model.load()
        width, expected = store.fields["tokens"].shape[-1], network.config.feature_width
        if width != expected:
            problem = f"compresses tokens {expected} wide, and {store.folder} has {width}"
            raise UserError(model.source, problem, "extract features with the encoder that it was trained for")
        told: Scores = {"model": _name(model.source, model.fingerprint), "images": len(rows), "those": what}
        return cls(network.to(device), store, rows, settings.fid.batch_size, device, told)

    def scores(self, processes: Processes) -> Scores:
        batches = batches_of(self.rows, self.size)
        own = semantic_parts(self.network, self.store, in_turn(batches, processes), self.device)
        found = semantic_summary(_every(own, "held-out features", len(batches), processes), len(self.rows))
        return self.told | {name: found[name] for name in SEMANTIC_SCORES if name in found}


def _every(own: Iterator[T], doing: str, batches: int, processes: Processes) -> list[T]:
    """What all processes give of their batches, in order, in the first one; see `gathered`.

    An error is a result: the first process tells it as the reason of a score, and the others go on to the next one.

    Raises:
        UserError: a process had one.
    """
    found = gathered(_with_error(own), rounds_of(batches, processes), processes)
    every = list(progress(found, doing, batches, unit="batch", silent=not processes.is_main))
    for one in every:
        if isinstance(one, _Ended):
            raise one.error
    return [one for one in every if not isinstance(one, _Ended)]


@dataclass(frozen=True)
class _Ended:
    """The error that a process ended with, as a result."""

    error: UserError


def _with_error(own: Iterator[T]) -> Iterator[T | _Ended]:
    try:
        yield from own
    except UserError as error:
        yield _Ended(error)


def _name(source: str, fingerprint: str) -> str:
    return f"{source} {fingerprint[:16]}"

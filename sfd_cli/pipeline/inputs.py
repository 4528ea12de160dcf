"""Noise and labels of every image of a sampling run: drawn from the seed, or given in `.npy` files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from sfd_cli.config import Sample
from sfd_cli.errors import UserError
from sfd_cli.files import sha256_file

# dopri5's step size comes from all images integrated together: a fixed group keeps image i from depending on the
# batch size.
DOPRI5_GROUP = 16


@dataclass(frozen=True)
class SampleInputs:
    """What each image starts from.

    Attributes:
        seed: of the noise, where none is given.
        classes: class indices that images take in turn, where no labels are given; None for all classes.
        noise: given noise (N, C, h, w), mapped from its file.
        labels: given labels (N,).
        count: images of the run.
        fingerprints: SHA-256 of the files given.
    """

    seed: int
    classes: list[int] | None
    count: int
    noise: np.ndarray | None = None
    labels: np.ndarray | None = None
    fingerprints: tuple[tuple[str, str], ...] = ()

    @classmethod
    def open(cls, sample: Sample, noise: Path | None = None, labels: Path | None = None) -> Self:
        """The inputs of a run; a file given decides how many images there are.

        Raises:
            UserError: a file is not an array of the kind, or the two do not belong together.
        """
        given = {"noise": noise, "labels": labels}
        arrays = {name: _read_array(name, path) for name, path in given.items() if path is not None}
        if "noise" in arrays and (arrays["noise"].ndim != 4 or arrays["noise"].dtype.kind != "f"):
            raise UserError(f"noise: {noise} is {_kind(arrays['noise'])}; expected floats of shape (N, C, h, w)")
        if "labels" in arrays and (arrays["labels"].ndim != 1 or arrays["labels"].dtype.kind not in "iu"):
            raise UserError(f"labels: {labels} is {_kind(arrays['labels'])}; expected whole numbers of shape (N,)")
        counts = {name: len(array) for name, array in arrays.items()}
        if len(set(counts.values())) > 1:
            raise UserError(f"labels: {counts['labels']} labels for {counts['noise']} images of noise; give as many")
        count = next(iter(counts.values()), sample.num_images)
        if not count:
            raise UserError(f"{noise or labels} is empty; give at least one image")
        digests = tuple((name, sha256_file(path)) for name, path in given.items() if path is not None)
        return cls(sample.seed, sample.classes, count, arrays.get("noise"), arrays.get("labels"), digests)

    def require_fit(self, shape: Sequence[int], num_classes: int) -> None:
        """Check against a network that takes noise of `shape` (C, h, w) and labels below `num_classes`.

        Raises:
            UserError: noise of another shape, or a label out of range.
        """
        if self.noise is not None and self.noise.shape[1:] != tuple(shape):
            raise UserError(
                f"noise has shape {self.noise.shape}, but the network takes (N, {str(tuple(shape))[1:]};"
                " give noise of that shape"
            )
        for index, image in enumerate([] if self.noise is None else self.noise):
            if not np.isfinite(_float32(image)).all():
                raise UserError(f"noise: image {index} is not finite in float32; give standard normal noise")
        for name, labels in (("labels", self.labels), ("sample.classes", self.classes)):
            wrong = [int(label) for label in ([] if labels is None else labels) if not 0 <= label < num_classes]
            if wrong or (labels is not None and len(labels) == 0):
                raise UserError(
                    f"{name}: {wrong[:5] or 'an empty list'} will not do; the network knows classes 0 to"
                    f" {num_classes - 1}"
                )

    def noise_of(self, indices: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Noise (n, *shape) float32 on the CPU; past the end of what is given it begins again."""
        if self.noise is None:
            return initial_noise(self.seed, indices, shape)
        return torch.from_numpy(_float32(self.noise[np.asarray(indices) % self.count]))

    def labels_of(self, indices: Sequence[int], num_classes: int) -> Tensor:
        """Labels (n,) int64."""
        if self.labels is None:
            return balanced_labels(indices, range(num_classes) if self.classes is None else self.classes)
        return torch.from_numpy(self.labels[np.asarray(indices) % self.count].astype(np.int64))


def images_at_once(sample: Sample) -> int:
    """Images of one call of the solver."""
    return DOPRI5_GROUP if sample.solver == "dopri5" else sample.batch_size


def initial_noise(seed: int, indices: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal noise (n, *shape) float32 on the CPU; each image's depends on `seed` and its index alone."""

    def one(index: int) -> Tensor:
        state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)
        return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(int(state[0])))

    return torch.stack([one(index) for index in indices])


def balanced_labels(indices: Sequence[int], classes: Sequence[int]) -> Tensor:
    """Labels (n,) int64 that go through `classes` in turn, so that any run of images has all equally often."""
    return torch.tensor([classes[index % len(classes)] for index in indices])


def _read_array(name: str, path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{name}: {path} does not exist") from None
    except (OSError, ValueError, EOFError, BadZipFile):
        raise UserError(f"{name}: {path} is not a whole .npy file of numbers; write it with numpy.save") from None
    if not isinstance(array, np.ndarray):
        raise UserError(f"{name}: {path} is an archive of arrays; give one array, saved with numpy.save")
    return array


def _float32(array: np.ndarray) -> np.ndarray:
    """In this machine's byte order; too large a number becomes infinite."""
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {array.shape}"

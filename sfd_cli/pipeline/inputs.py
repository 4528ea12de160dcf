"""Noise and labels of every image of a sampling run: drawn from the seed, or read from `.npy` files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from sfd_cli.config import Sample
from sfd_cli.diffusion.conditions import Conditions
from sfd_cli.diffusion.latents import LatentSpace
from sfd_cli.errors import UserError
from sfd_cli.files import sha256_file

# Tells the stream of numbers that labels are drawn from from that of an image's noise.
LABEL = 1


@dataclass(frozen=True)
class SampleInputs:
    """What each image starts from.

    Attributes:
        seed: of the noise, where `noise` is None.
        classes: class indices that images take, where `labels` is None; None for all classes.
        count: images of the run.
        noise: (N, C, h, w), mapped from its file.
        labels: (N,).
        fingerprints: SHA-256 of the files.
        balanced: whether images take the classes in turn; else each draws its own by the seed.
    """

    seed: int
    classes: list[int] | None
    count: int
    noise: np.ndarray | None = None
    labels: np.ndarray | None = None
    fingerprints: tuple[tuple[str, str], ...] = ()
    balanced: bool = True

    @classmethod
    def open(cls, sample: Sample, noise: Path | None = None, labels: Path | None = None) -> Self:
        """The inputs of a run; a file decides how many images there are.

        Raises:
            UserError: a file is not an array of the kind, or the two have different lengths.
        """
        files = {name: path for name, path in (("noise", noise), ("labels", labels)) if path is not None}
        arrays = {name: _read_array(path) for name, path in files.items()}
        if "noise" in arrays and (arrays["noise"].ndim != 4 or arrays["noise"].dtype.kind != "f"):
            raise UserError(noise, f"is {_kind(arrays['noise'])}", "give floats of shape (N, C, h, w)")
        if "labels" in arrays and (arrays["labels"].ndim != 1 or arrays["labels"].dtype.kind not in "iu"):
            raise UserError(labels, f"is {_kind(arrays['labels'])}", "give whole numbers of shape (N,)")
        counts = {name: len(array) for name, array in arrays.items()}
        if len(set(counts.values())) > 1:
            raise UserError(labels, f"{counts['labels']} labels for {counts['noise']} images of noise", "give as many")
        count = next(iter(counts.values()), sample.num_images)
        if not count:
            raise UserError(noise or labels, "is empty", "give at least one image")
        digests = tuple((name, sha256_file(path)) for name, path in files.items())
        balanced = sample.class_labels == "balanced"
        return cls(sample.seed, sample.classes, count, arrays.get("noise"), arrays.get("labels"), digests, balanced)

    def require_fit(self, space: LatentSpace, conditions: Conditions) -> None:
        """Check against what a transformer takes.

        Raises:
            UserError: noise of another shape or not finite, or a class that the transformer does not know.
        """
        if self.noise is not None and self.noise.shape[1:] != space.shape:
            raise UserError(
                "noise",
                f"has shape {self.noise.shape}, but the transformer takes (N, {', '.join(map(str, space.shape))})",
                "give noise of that shape",
            )
        for index, image in enumerate([] if self.noise is None else self.noise):
            if not np.isfinite(_float32(image)).all():
                raise UserError("noise", f"image {index} is not finite in float32", "give standard normal noise")
        for name, labels in (("labels", self.labels), ("sample.classes", self.classes)):
            wrong = [int(label) for label in ([] if labels is None else labels) if not 0 <= label < len(conditions)]
            if wrong or (labels is not None and len(labels) == 0):
                known = f"the transformer knows classes 0 to {len(conditions) - 1}"
                raise UserError(name, f"{wrong[:5] if wrong else 'an empty list'} cannot be sampled", known)

    def draws_from_seed(self, is_stochastic: bool) -> bool:
        """Whether images hang on the seed: by their noise, their labels, or what a stochastic solver draws."""
        return is_stochastic or self.noise is None or (self.labels is None and not self.balanced)

    def noise_of(self, indices: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Noise (n, *shape) float32 on the CPU; past the end of a file it begins again."""
        if self.noise is None:
            return initial_noise(self.seed, indices, shape)
        return torch.from_numpy(_float32(self.noise[np.asarray(indices) % self.count]))

    def labels_of(self, indices: Sequence[int], num_classes: int) -> Tensor:
        """Labels (n,) int64."""
        if self.labels is None:
            classes = range(num_classes) if self.classes is None else self.classes
            return balanced_labels(indices, classes) if self.balanced else random_labels(self.seed, indices, classes)
        return torch.from_numpy(self.labels[np.asarray(indices) % self.count].astype(np.int64))


def initial_noise(seed: int, indices: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal noise (n, *shape) float32 on the CPU; each image's depends on `seed` and its index alone."""

    return torch.stack([torch.randn(tuple(shape), generator=image_generator(seed, index)) for index in indices])


def step_noise(seed: int, indices: Sequence[int], shape: Sequence[int]) -> Callable[[], Tensor]:
    """Draws standard normal noise (n, *shape) float32 on the CPU, new at every call, for a stochastic solver's steps.

    Each image's depends on `seed` and its index alone: it is what its generator draws after the image's initial noise.
    """
    generators = [image_generator(seed, index) for index in indices]

    def draw() -> Tensor:
        return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])

    draw()
    return draw


def image_generator(seed: int, index: int) -> torch.Generator:
    """The generator, on the CPU, of image `index` of every run with this seed."""
    state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def balanced_labels(indices: Sequence[int], classes: Sequence[int]) -> Tensor:
    """Labels (n,) int64 that go through `classes` in turn, so that any run of images has all equally often."""
    return torch.tensor([classes[index % len(classes)] for index in indices])


def random_labels(seed: int, indices: Sequence[int], classes: Sequence[int]) -> Tensor:
    """Labels (n,) int64 drawn from `classes` with equal chances; each image's depends on `seed` and its index alone."""
    draws = [np.random.default_rng([seed, index, LABEL]).integers(len(classes)) for index in indices]
    return torch.tensor([classes[int(draw)] for draw in draws])


def _read_array(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(path, "does not exist", "check the path") from None
    except Exception:  # a header at random makes NumPy's reader fail in any way
        raise UserError(path, "is not a whole .npy file of numbers", "write it with numpy.save") from None
    if not isinstance(array, np.ndarray):
        raise UserError(path, "is an archive of arrays", "give one array, saved with numpy.save")
    return array


def _float32(array: np.ndarray) -> np.ndarray:
    """In this machine's byte order; too large a number becomes infinite."""
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {array.shape}"

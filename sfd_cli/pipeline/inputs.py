"""Noise and labels of every image of a sampling run: drawn from the seed, or read from `.npy` files."""

from __future__ import annotations

from collections.abc import Sequence
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
from sfd_cli.pipeline.class_labels import rows_of
from sfd_cli.pipeline.seeds import balanced_labels, initial_noise, random_labels
from sfd_cli.pipeline.strip import Strip, strip_of


@dataclass(frozen=True)
class SampleInputs:
    """What each image starts from.

    Attributes:
        seed: of the noise, where `noise` is None.
        classes: classes that images take, by index or name, where `labels` is None; None for all classes.
        count: images of the run.
        noise: (N, C, h, w), mapped from its file.
        labels: (N,).
        fingerprints: SHA-256 of the files.
        balanced: whether images take the classes in turn; else each draws its own by the seed.
        strip: the images go from one to another, which takes the place of the seed's noise and of all labels.
    """

    seed: int
    classes: Sequence[int | str] | None
    count: int
    noise: np.ndarray | None = None
    labels: np.ndarray | None = None
    fingerprints: tuple[tuple[str, str], ...] = ()
    balanced: bool = True
    strip: Strip | None = None

    @classmethod
    def open(cls, sample: Sample, noise: Path | None = None, labels: Path | None = None) -> Self:
        """The inputs of a run; a file decides how many images there are.

        Raises:
            UserError: a file is not an array of the kind, the two have different lengths, or there can be no strip that
                settings ask for.
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
        labelled = sample.classes if labels is None else arrays["labels"].tolist()
        strip = strip_of(sample, labelled, count, noise is not None, "sample.classes" if labels is None else "labels")
        balanced = sample.class_labels == "balanced"
        given = arrays.get("noise"), arrays.get("labels")
        return cls(sample.seed, sample.classes, count, *given, digests, balanced, strip)

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
        if self.labels is not None:
            rows_of(self.labels.tolist(), conditions, "labels")
        if self.classes is not None:
            rows_of(self.classes, conditions, "sample.classes")
        if self.strip is not None:
            self.strip.require_fit(conditions)

    def chosen(self, conditions: Conditions) -> list[int] | None:
        """Rows of the classes that images take; None for all classes."""
        return None if self.classes is None else rows_of(self.classes, conditions, "sample.classes")

    def draws_from_seed(self, is_stochastic: bool) -> bool:
        """Whether images hang on the seed: by their noise, their labels, or what a stochastic solver draws."""
        return is_stochastic or self.noise is None or (self.labels is None and not self.balanced)

    def noise_of(self, indices: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Noise (n, *shape) float32 on the CPU; past the end of a file it begins again."""
        if self.strip is not None:
            return self.strip.noise_of(indices, shape)
        if self.noise is None:
            return initial_noise(self.seed, indices, shape)
        return torch.from_numpy(_float32(self.noise[np.asarray(indices) % self.count]))

    def rows_of(self, indices: Sequence[int], conditions: Conditions) -> Tensor:
        """Rows (n,) int64 that the network is asked for: the labels, or those of a strip, see `Strip.rows_of`."""
        return self.labels_of(indices, conditions) if self.strip is None else self.strip.rows_of(indices, conditions)

    def labels_of(self, indices: Sequence[int], conditions: Conditions) -> Tensor:
        """Labels (n,) int64; the last row of the conditions is the null label."""
        if self.strip is not None:
            return self.strip.labels_of(indices, conditions)
        if self.labels is None:
            classes = self.chosen(conditions) or range(len(conditions))
            return balanced_labels(indices, classes) if self.balanced else random_labels(self.seed, indices, classes)
        return torch.from_numpy(self.labels[np.asarray(indices) % self.count].astype(np.int64))


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

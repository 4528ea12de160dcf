"""What perfect semantics are worth: textures sampled beside the semantics of real images, against sampled ones.

Semantics go on the straight line from their noise to a real image's, by the same law of times as in sampling, so that
the transformer sees what it was trained on; textures are its own. The difference is what errors of the semantics cost
along this law; what another order would do with the same semantics it does not tell. Under `sample.delta_t: 1` textures
begin beside finished semantics.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from sfd_cli.artifacts.trained_on import other_latents
from sfd_cli.config import Settings
from sfd_cli.data.latent_space import read_latents
from sfd_cli.data.moments import Moments
from sfd_cli.data.store import Store
from sfd_cli.devices import choose_device
from sfd_cli.errors import UserError
from sfd_cli.evaluation.comparison import compare
from sfd_cli.evaluation.extractor import POOLED
from sfd_cli.evaluation.extractors import EXTRACTORS
from sfd_cli.evaluation.features import FeatureSet, extract
from sfd_cli.evaluation.frechet import frechet_distance
from sfd_cli.evaluation.gaussian import Gaussian
from sfd_cli.evaluation.reference import open_references
from sfd_cli.pipeline.held import Held, part_of
from sfd_cli.pipeline.models import SamplingModels
from sfd_cli.pipeline.sampler import Sampler
from sfd_cli.pipeline.seeds import initial_noise

WHAT = "images with other semantics"
PARTS = 10


@dataclass(frozen=True)
class PairedImages:
    """Images sampled from the noise of `sfd sample` for the classes of images spread over the training set.

    Attributes:
        sampler: the models.
        store: the latents that they were trained on.
        spread: images that there are of such kind.
        real_semantics: whether they get the semantics of those training images, or sample their own.
        indices: those of them that are meant; None: all.
    """

    sampler: Sampler
    store: Store
    spread: int
    real_semantics: bool
    indices: Sequence[int] | None = None

    @property
    def count(self) -> int:
        """Number of images."""
        return self.spread if self.indices is None else len(self.indices)

    def at(self, indices: Sequence[int]) -> Self:
        """See `ImageSource`."""
        return replace(self, indices=list(indices) if self.indices is None else [self.indices[i] for i in indices])

    def batches(self, size: int) -> Iterator[Tensor]:
        """See `ImageSource`."""
        rows = np.linspace(0, len(self.store) - 1, self.spread).round().astype(np.int64)
        wanted = np.arange(self.spread) if self.indices is None else np.asarray(self.indices)
        at_once = replace(self.sampler, sample=self.sampler.sample.model_copy(update={"batch_size": size})).batch_size
        for indices in np.split(wanted, range(at_once, self.count, at_once)):
            yield self._sampled(indices, rows[indices])

    @torch.inference_mode()
    def _sampled(self, indices: np.ndarray, rows: np.ndarray) -> Tensor:
        sampler, space = self.sampler, self.sampler.space
        noise = initial_noise(sampler.sample.seed, indices.tolist(), space.shape).to(sampler.device)
        labels = torch.from_numpy(self.store.labels[rows]).to(sampler.device)
        held = None
        if self.real_semantics:
            latents = read_latents(self.store, rows, space).to(sampler.device)
            held = Held(part_of(space, "semantics", device=sampler.device), noise, latents)
        return sampler.decode(sampler.solve(noise, labels, held=held, indices=indices.tolist()))


@dataclass(frozen=True)
class Oracle:
    """Fréchet distances (DINOv2 class token, without guidance) to the reference of `sfd fid`.

    Attributes:
        settings: those of the models and of `sfd fid`, without baselines.
        sampler: the models.
        store: the latents that they were trained on.
    """

    settings: Settings
    sampler: Sampler
    store: Store

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Load the models.

        Raises:
            UserError: a model or the store is missing, damaged, or not of the other's latents.
        """
        sample = settings.sample.model_copy(update={"guidance": "none"})
        fid = settings.fid.model_copy(update={"baselines": False})
        settings = settings.model_copy(update={"sample": sample, "fid": fid})
        store = Store(settings.paths.latents)
        sampler = SamplingModels.open(settings).load(sample, choose_device(settings.runtime.device))
        if not sampler.space.semantic:
            raise UserError(settings.paths.dit, "has no semantic channels", "train one that has")
        if (why := other_latents(settings.paths.dit, sampler.space, store)) is not None:
            problem = f"was trained on other latents than those in {store.folder}, which have {why}"
            raise UserError(settings.paths.dit, problem, "name its own store, or train it again")
        return cls(settings, sampler, store)

    @property
    def count(self) -> int:
        """Images that are sampled: `sample.num_images`, or as many as there are to learn from if these are fewer."""
        return min(self.settings.sample.num_images, len(self.store))

    def measure(self) -> dict[str, float]:
        """Distances with real and with sampled semantics, their difference, and its standard error.

        The error is a jackknife's over PARTS parts of the images, which start from the same noise for the same
        classes on both sides; that of either distance alone is larger.

        Raises:
            UserError: the reference is missing or damaged, the encoder cannot be had, or there are too few images.
            StageFailure: a feature is not finite.
        """
        if self.count < 2 * PARTS:
            problem = f"{self.count} images are too few, {2 * PARTS} the fewest"
            raise UserError("sample.num_images", problem, "sample more, of a store that has as many")
        sets, reference = self._features(True, False)
        real, sampled = (frechet_distance(found.gaussian(), reference) for found in sets)
        part = torch.arange(len(sets[0].rows)) % PARTS
        gains = []
        for left_out in range(PARTS):
            with_real, with_sampled = (_gaussian(found.rows[part != left_out]) for found in sets)
            gains.append(frechet_distance(with_sampled, reference) - frechet_distance(with_real, reference))
        return {
            "images": self.count,
            "real_semantics": real,
            "sampled_semantics": sampled,
            "gain": sampled - real,
            "gain_standard_error": float(np.std(gains)) * math.sqrt(PARTS - 1),
        }

    def distance_with_real_semantics(self) -> float:
        """The first of the distances of `measure` alone."""
        (found,), reference = self._features(True)
        return frechet_distance(found.gaussian(), reference)

    def _features(self, *real_semantics: bool) -> tuple[list[FeatureSet], Gaussian]:
        """Those of images with real semantics, or with their own, for each; and the reference's."""
        settings, fid = self.settings, self.settings.fid
        extractor = EXTRACTORS["encoder"].open(settings, self.sampler.device)
        references = open_references(settings, {extractor.name: extractor.widths.values()}, self.sampler.image_size)
        first, *others = (PairedImages(self.sampler, self.store, self.count, real) for real in real_semantics)
        compared = compare(settings, first, references, [extractor])[extractor.name][POOLED]
        if compared.gaussian is None:
            raise UserError(settings.paths.images, "there are no images to compare with", "run `sfd prepare-data`")
        sets = [compared.samples]
        for images in others:
            sets.append(extract(images, WHAT, [extractor], fid.batch_size, fid.seed)[extractor.name][POOLED])
        return sets, compared.gaussian


def _gaussian(rows: Tensor) -> Gaussian:
    return Gaussian.of(Moments.of(rows.numpy(), scatter=True))

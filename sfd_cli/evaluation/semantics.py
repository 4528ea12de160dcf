"""How good sampled semantics are: what the Semantic VAE decodes them to, against real patch tokens.

The features of an image are the mean of its patch tokens over all positions, as Inception's pooled features are the
mean over its 8 x 8 positions. Everything else is as for images: floor, ceiling, what the autoencoder costs, errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sfd_cli.artifacts.fingerprints import finished
from sfd_cli.artifacts.kept_semantics import read_semantics
from sfd_cli.artifacts.sample_folder import Samples, choose
from sfd_cli.config import Settings
from sfd_cli.data.store import Store
from sfd_cli.devices import choose_device, float32_products
from sfd_cli.errors import StageFailure, UserError
from sfd_cli.evaluation.features import ROWS_KEPT, FeatureSet
from sfd_cli.evaluation.gaussian import Gaussian
from sfd_cli.evaluation.metric import FEWEST_TO_HALVE, Compared, GaussianDistance, Reconstructed
from sfd_cli.evaluation.reasons import NotComputable, Scores, unavailable
from sfd_cli.evaluation.scores import renamed
from sfd_cli.evaluation.untrained import UntrainedImages
from sfd_cli.progress import progress
from sfd_cli.tables import METRICS
from sfd_cli.weights.models import SemanticCompressor, open_semantic

NAME = "semantics"
"""What stands in the names of scores where an extractor's name does."""
DISTANCE = "fd"
NOT_KEPT = "no semantic latents lie beside these images (semantics.npy); `sfd sample` writes them"


@dataclass(frozen=True)
class SemanticScores:
    """Scores of sampled semantics by their keys in `fid.json`, numbers of images, and what was compared."""

    scores: Scores = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    used: dict[str, Any] = field(default_factory=dict)


def score_semantics(settings: Settings, samples: Samples | None) -> SemanticScores:
    """The Fréchet distance of decoded sampled semantics to real patch tokens, if `fid.scores` has `fd`.

    Of a transformer without semantics there is none.

    Args:
        settings: the sections `fid`, `sample`, `dit`, `semvae`, `encoder`, `paths` and `runtime` are read.
        samples: the folder that is scored; None where it is none.

    Returns:
        `fd_semantics` with its error, and of `fid.baselines` floor, ceiling and reconstructions; None with the reason
        where it cannot be computed.

    Raises:
        StageFailure: a decoded token is not finite.
    """
    if DISTANCE not in settings.fid.scores or not settings.dit.semantics:
        return SemanticScores()
    metric: GaussianDistance = METRICS[DISTANCE]
    try:
        decoded = DecodedSemantics.open(settings, samples)
        scores, counts = metric.compute(decoded.compared(), settings.fid)
    except (UserError, NotComputable) as error:
        return SemanticScores(renamed(NAME, unavailable([DISTANCE], str(error))))
    return SemanticScores(renamed(NAME, scores), renamed(NAME, counts), decoded.used)


@dataclass(frozen=True)
class DecodedSemantics:
    """Sampled semantics, real patch tokens, and the network between both.

    Attributes:
        settings: see `score_semantics`.
        latents: the sampled ones, (n, C_s, h, w) float32, not normalised.
        store: the real tokens.
        network: decodes and encodes.
        device: where it is.
        used: fingerprints of the model and of the tokens.
    """

    settings: Settings
    latents: np.ndarray
    store: Store
    network: SemanticCompressor
    device: torch.device
    used: dict[str, Any]

    @classmethod
    def open(cls, settings: Settings, samples: Samples | None) -> Self:
        """Load what is compared.

        Raises:
            NotComputable: the images have no semantics beside them.
            UserError: something else is missing, damaged, or not of the same latents and tokens.
        """
        if samples is None or samples.semantics is None:
            raise NotComputable(NOT_KEPT)
        kept = read_semantics(samples.semantics)
        chosen = choose(len(samples.files), settings.fid.num_images, settings.fid.seed)
        if len(kept) != len(samples.files):
            problem = f"has latents of {len(kept)} images, and there are {len(samples.files)}"
            raise UserError(samples.semantics, problem, "run `sfd sample` again")
        tokens = finished(settings.paths.features, "sfd extract-features")
        store, model = Store(settings.paths.features), open_semantic(settings)
        used = {"semantic_vae": f"{model.source} {model.fingerprint[:16]}"}
        used |= {"patch_tokens": f"{store.folder} {tokens.fingerprint[:16]}"}
        network, device = model.load(), choose_device(settings.runtime.device)
        positions, width = store.fields["tokens"].shape[1:]
        for what, found, wanted in (
            ("semantic channels", network.config.channels, kept.shape[1]),
            ("positions", positions, kept.shape[2] * kept.shape[3]),
            ("wide tokens", width, network.config.feature_width),
        ):
            if found != wanted:
                problem = f"do not belong together: {found} {what} on one side, {wanted} on the other"
                raise UserError(f"{samples.semantics}, {model.source} and {store.folder}", problem)
        return cls(settings, kept[chosen], store, network.to(device), device, used)

    def compared(self) -> Compared:
        """The features of all that is compared; of more than 50,000 real images, of as many random ones.

        Raises:
            UserError: a stored array is damaged, or there are fewer than two images.
        """
        fid, store = self.settings.fid, self.store
        if min(len(self.latents), len(store)) < 2:
            raise UserError(store.folder, "one image has no Fréchet distance", "score more")
        rows = np.asarray(choose(len(store), min(len(store), ROWS_KEPT), fid.seed))
        size = fid.batch_size
        sampled = (torch.from_numpy(self.latents[start : start + size]) for start in range(0, len(self.latents), size))
        scored = self._features("sampled semantics", len(self.latents), map(self._decoded, sampled))
        reference = self._features("patch tokens", len(rows), self._real(rows))
        if not fid.baselines or len(rows) < FEWEST_TO_HALVE:
            return Compared(scored, reference)
        half = reference.first_half_indices()
        chosen = choose(len(half), min(len(self.latents), len(half)), fid.seed)
        again = map(self._returned, self._real(rows[half[chosen]]))
        returned = self._features("reconstructed tokens", len(chosen), again)
        untrained, why = self._untrained()
        originals = Gaussian.of_rows(reference.first_half_rows()[chosen])
        return Compared(scored, reference, None, untrained, why, Reconstructed(returned, originals))

    def _untrained(self) -> tuple[FeatureSet | None, str]:
        """Features of what an untrained transformer samples, or why there are none."""
        try:
            images = UntrainedImages.open(self.settings, len(self.latents), self.device)
        except UserError as error:
            return None, str(error)
        if images.sampler.space.semantic != self.latents.shape[1]:
            return None, f"{images.sampler.name} has {images.sampler.space.semantic} semantic channels"
        latents = images.semantics(self.settings.fid.batch_size)
        return self._features("an untrained model's semantics", images.count, map(self._decoded, latents)), ""

    def _real(self, rows: np.ndarray) -> Iterator[Tensor]:
        """Patch tokens (n, N, D) float32 of images as they are, batch by batch."""
        size = self.settings.fid.batch_size
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            yield torch.from_numpy(self.store.read("tokens", batch, np.zeros(len(batch), np.int64))).float()

    @torch.inference_mode()
    def _decoded(self, latents: Tensor) -> Tensor:
        """Patch tokens (n, N, D) of latents (n, C_s, h, w)."""
        with float32_products(self.device, tf32=True):
            return self.network.decode(latents.to(self.device).flatten(2).transpose(1, 2))

    @torch.inference_mode()
    def _returned(self, tokens: Tensor) -> Tensor:
        """Patch tokens (n, N, D) that were compressed and decoded, by posterior means."""
        with float32_products(self.device, tf32=True):
            return self.network.decode(self.network.encode(tokens.to(self.device))[0])

    def _features(self, what: str, count: int, batches: Iterable[Tensor]) -> FeatureSet:
        """Means over positions of patch tokens (n, N, D)."""
        found = FeatureSet(self.store.fields["tokens"].shape[-1], count, self.settings.fid.seed)
        steps = -(-count // self.settings.fid.batch_size)
        for tokens in progress(batches, what, steps, unit="batch"):
            means = tokens.float().mean(dim=1).cpu()
            if not bool(means.isfinite().all()):
                raise StageFailure(what, "are not finite", "no score is computed")
            found.update(means)
        return found

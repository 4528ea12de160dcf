"""The asynchronous objective on stored composite latents, as a task of the training loop."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from sfd_cli.config import DiT
from sfd_cli.data.latent_space import space_of_store
from sfd_cli.data.store import Store
from sfd_cli.devices import kind_of
from sfd_cli.diffusion.conditions import Conditions
from sfd_cli.diffusion.latents import Streams
from sfd_cli.diffusion.objective import (
    dispersive,
    interpolate,
    repa,
    velocity_cosine,
    velocity_mse,
    velocity_of_data,
    velocity_target,
)
from sfd_cli.diffusion.schedule import schedule_of
from sfd_cli.diffusion.training_times import TrainingTimes
from sfd_cli.errors import SettingError
from sfd_cli.weights.models import SemanticCompressor


class VelocityTask:
    """Squared velocity error, weighted on semantics, plus its cosine term and REPA (arXiv 2512.04926, section 3).

    Instead of REPA, or beside it, there may be the dispersive loss, which needs no encoder.

    Args:
        store: the latent store; its fields are (flips, ...) float16, axis 0 being (as is, flipped) or (as is).
        section: settings of the objective.
        decoder: the frozen semantic compressor on the training device, for `repa: decoded`.
        device: the training device.

    Attributes:
        space: layout of the composite latents, with the statistics that normalise them: those of the store, unless
            training starts from a transformer with others.
        conditions: the store's classes.

    Raises:
        SettingError: the store lacks what the settings need.
    """

    def __init__(self, store: Store, section: DiT, decoder: SemanticCompressor | None, device: torch.device) -> None:
        self.store, self.device, self._section, self._decoder = store, device, section, decoder
        if section.repa == "stored" and "features" not in store.fields:
            remedy = "encode again with latents.store_features: true, or use repa: 'decoded' or 'none'"
            raise SettingError("repa", f"{store.folder} holds no features to compare with", remedy)
        self._times = TrainingTimes(
            schedule_of(section), section.objective, section.time_mean, section.lead_jitter, section.leader_noise
        )
        self.space = space_of_store(store, section.semantics)
        self.conditions = Conditions(tuple(store.classes))
        needs_semantics = section.semantics or section.repa == "decoded"
        needed = {"texture": True, "semantic": needs_semantics, "features": section.repa == "stored"}
        self._fields = [name for name, is_needed in needed.items() if is_needed]

    @property
    def feature_width(self) -> int:
        """Width of the patch tokens that REPA compares with, 0 without REPA."""
        if self._section.repa == "stored":
            return self.store.fields["features"].shape[-1]
        return self._decoder.config.feature_width if self._decoder else 0

    def fetch(self, indices: np.ndarray, flips: np.ndarray) -> dict[str, Tensor]:
        """Labels (B,) int64 and the stored arrays (B, ...) float16, not normalised."""
        arrays = {name: self._read(name, indices, flips) for name in self._fields}
        return arrays | {"labels": torch.from_numpy(self.store.labels[indices])}

    def _read(self, name: str, indices: np.ndarray, flips: np.ndarray) -> Tensor:
        """One field of a batch; for a GPU read into pinned memory, which PyTorch's allocator reuses."""
        if not kind_of(self.device).pinned:
            return torch.from_numpy(self.store.read(name, indices, flips))
        out = torch.empty((len(indices), *self.store.fields[name].shape[1:]), dtype=torch.float16, pin_memory=True)
        self.store.read(name, indices, flips, out=out.numpy())
        return out

    def draw(self, generator: torch.Generator, count: int) -> dict[str, Tensor]:
        """Noise (count, C, h, w), what decides the times, and whether each label is dropped (count,) bool.

        What only some settings need is drawn last: the same seed gives the same of the rest to all of them.
        """
        device = generator.device
        draws = {
            "level": self._times.draw_level(count, generator, device),
            "noise": torch.randn((count, *self.space.shape), generator=generator, device=device),
            "dropped": torch.rand(count, generator=generator, device=device) < self._section.label_dropout,
        }
        return draws | self._times.draw_further(count, generator, device)

    def losses(self, model: nn.Module, batch: dict[str, Tensor], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """The objective and its terms, means over the batch; groups of the dispersive loss are consecutive rows."""
        section, space, noise = self._section, self.space, draws["noise"]
        data = space.join(Streams(*self._streams(batch, draws)))
        times, stream_weights = self._times.of(draws)
        weights = None if stream_weights is None else space.spread(stream_weights)
        rows = self._rows(batch, draws)
        noisy = interpolate(data, noise, times, space)
        output = model(noisy, *times, rows, section.repa != "none", section.hidden_depth)
        velocity, projection, hidden = output if isinstance(output, tuple) else (output, None, None)
        # Where clean latents are predicted, both sides are divided by the same: the right one never costs anything.
        by_data = section.prediction == "data"
        target = velocity_of_data(data, noisy, times, space) if by_data else velocity_target(data, noise)
        mse = velocity_mse(velocity.float(), target, space, section.semantic_weight, weights).mean()
        cosine = velocity_cosine(velocity.float(), target, weights).mean()
        terms = {"loss": mse + section.cosine_weight * cosine, "mse": mse, "cosine": cosine}
        if projection is not None:
            terms["repa"] = repa(projection.float(), self._features(batch), section.repa_mode).mean()
            terms["loss"] = terms["loss"] + section.repa_weight * terms["repa"]
        if hidden is not None:
            terms["dispersive"] = dispersive(hidden, section.dispersive_group, section.dispersive_temperature).mean()
            terms["loss"] = terms["loss"] + section.dispersive_weight * terms["dispersive"]
        return terms

    def _streams(self, batch: dict[str, Tensor], draws: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Stored textures and semantics of a batch; semantics of no channels where there are none."""
        return batch["texture"], batch.get("semantic", batch["texture"][:, :0])

    def _rows(self, batch: dict[str, Tensor], draws: dict[str, Tensor]) -> Tensor:
        """Conditions (B,) of a batch."""
        return self.conditions.drop(batch["labels"], draws["dropped"])

    def examples(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Images of the store as they are, on the device: latents (n, C, h, w), normalised, and labels (n,)."""
        as_is = np.zeros(len(rows), np.int64)
        raw = [
            torch.from_numpy(self.store.read(name, rows, as_is)).to(self.device)
            for name, width in zip(Streams._fields, (self.space.texture, self.space.semantic), strict=True)
            if width
        ]
        latents = self.space.join(Streams(raw[0], raw[-1]))
        return latents, torch.from_numpy(self.store.labels[rows]).to(self.device)

    @torch.no_grad()
    def _features(self, batch: dict[str, Tensor]) -> Tensor:
        """Patch tokens (B, N, D) float32: stored, or decoded from the semantic latent."""
        if self._decoder is None:
            return batch["features"].float()
        return self._decoder.decode(batch["semantic"].float().flatten(2).transpose(1, 2)).float()

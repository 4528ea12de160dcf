"""What the diffusion transformer is trained for: the asynchronous objective on stored composite latents."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from sfd_cli.config import DiT
from sfd_cli.data.store import Store
from sfd_cli.diffusion.objective import draw_progress, interpolate, repa, velocity_cosine, velocity_mse, velocity_target
from sfd_cli.diffusion.schedule import AsynchronousSchedule
from sfd_cli.errors import UserError
from sfd_cli.weights.models import SemanticCompressor


class VelocityTask:
    """Velocity error, weighted on semantics, plus its cosine term and REPA (arXiv 2512.04926, section 3).

    Args:
        store: the latent store; its fields are (2, ...) float16, axis 0 being (as is, flipped).
        section: the objective's settings.
        decoder: the frozen semantic compressor, for `repa: decoded`; on the training device.
        device: the training device.

    Attributes:
        statistics: mean and std by which the latents are normalised, lists of a number per channel.

    Raises:
        UserError: the store lacks what the settings need.
    """

    def __init__(self, store: Store, section: DiT, decoder: SemanticCompressor | None, device: torch.device) -> None:
        self._store, self._section, self._decoder = store, section, decoder
        self._schedule = AsynchronousSchedule(section.delta_t)
        if section.repa == "stored" and "features" not in store.fields:
            raise UserError(
                f"repa: {store.folder} holds no features to compare with; encode again with"
                " latents.store_features: true, or use repa: 'decoded' or 'none'"
            )
        self._streams = ("texture", "semantic") if section.semantics else ("texture",)
        self._fields = (*self._streams, *(("features",) if section.repa == "stored" else ()))
        if section.repa == "decoded":
            self._fields = ("texture", "semantic")
        channels = [store.fields[name].shape[1] for name in self._streams]
        self.shape = (sum(channels), *store.fields["texture"].shape[2:])
        self.semantic_channels = channels[1] if section.semantics else 0
        self.statistics = {name: store.statistics[name][: self.shape[0]].tolist() for name in ("mean", "std")}
        self._mean, self._std = (
            torch.tensor(self.statistics[name], dtype=torch.float32, device=device)[:, None, None]
            for name in ("mean", "std")
        )

    @property
    def feature_width(self) -> int:
        """Width of the patch tokens that REPA looks at, 0 without REPA."""
        if self._section.repa == "stored":
            return self._store.fields["features"].shape[-1]
        return self._decoder.config.feature_width if self._decoder else 0

    def fetch(self, indices: np.ndarray, flips: np.ndarray) -> dict[str, Tensor]:
        """Labels (B,) int64 and the stored arrays as they are, float16."""
        arrays = {name: self._read(name, indices, flips) for name in self._fields}
        return arrays | {"labels": torch.from_numpy(self._store.labels[indices])}

    def _read(self, name: str, indices: np.ndarray, flips: np.ndarray) -> Tensor:
        """One field of a batch; for a GPU straight into pinned memory, which torch uses again when it is free."""
        if self._mean.device.type != "cuda":
            return torch.from_numpy(self._store.read(name, indices, flips))
        out = torch.empty((len(indices), *self._store.fields[name].shape[1:]), dtype=torch.float16, pin_memory=True)
        self._store.read(name, indices, flips, out=out.numpy())
        return out

    def draw(self, generator: torch.Generator, count: int) -> dict[str, Tensor]:
        """Progress T (count,), noise (count, C, h, w), and which labels are dropped (count,) bool."""
        device = generator.device
        return {
            "progress": draw_progress(count, self._schedule, generator, device),
            "noise": torch.randn((count, *self.shape), generator=generator, device=device),
            "dropped": torch.rand(count, generator=generator, device=device) < self._section.label_dropout,
        }

    def losses(self, model: nn.Module, batch: dict[str, Tensor], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """The objective and its terms, means over the batch."""
        section, noise = self._section, draws["noise"]
        data = (torch.cat([batch[name].float() for name in self._streams], dim=1) - self._mean) / self._std
        times = self._schedule.times(draws["progress"])
        labels = torch.where(draws["dropped"], len(self._store.classes), batch["labels"])
        x = interpolate(data, noise, times.texture, times.semantic, self.semantic_channels)
        output = model(x, times.texture, times.semantic, labels, section.repa != "none")
        velocity, projection = (output, None) if section.repa == "none" else output
        target = velocity_target(data, noise)
        mse = velocity_mse(velocity.float(), target, self.semantic_channels, section.semantic_weight).mean()
        cosine = velocity_cosine(velocity.float(), target).mean()
        terms = {"loss": mse + section.cosine_weight * cosine, "mse": mse, "cosine": cosine}
        if projection is not None:
            terms["repa"] = repa(projection.float(), self._features(batch), section.repa_mode).mean()
            terms["loss"] = terms["loss"] + section.repa_weight * terms["repa"]
        return terms

    @torch.no_grad()
    def _features(self, batch: dict[str, Tensor]) -> Tensor:
        """Patch tokens (B, N, D) float32: stored, or what the semantic latent says they were."""
        if self._decoder is None:
            return batch["features"].float()
        return self._decoder.decode(batch["semantic"].float().flatten(2).transpose(1, 2)).float()

"""What the Semantic VAE is trained for: patch tokens that come back from a few channels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from sfd_cli.data.store import Store
from sfd_cli.evaluation.held_out import reconstruction_errors
from sfd_cli.networks.gaussian import kl_divergence


class SemanticVAETask:
    """Reconstruct patch tokens: MSE + (1 - cosine) + `kl_weight` x KL (arXiv 2512.04926, Semantic VAE).

    Args:
        store: the feature store; its field `tokens` is (flips, N, D) float16.
        channels: semantic channels C_s.
        kl_weight: weight of the KL, which is summed over the tokens and channels of an image.
    """

    def __init__(self, store: Store, channels: int, kl_weight: float) -> None:
        self.store = store
        self.channels = channels
        self.kl_weight = kl_weight

    def fetch(self, indices: np.ndarray, flips: np.ndarray) -> dict[str, Tensor]:
        """Patch tokens (B, N, D) float16."""
        return {"tokens": torch.from_numpy(self.store.read("tokens", indices, flips))}

    def draw(self, generator: torch.Generator, count: int) -> dict[str, Tensor]:
        """The posterior's noise (count, N, C_s)."""
        tokens = self.store.fields["tokens"].shape[1]
        shape = (count, tokens, self.channels)
        return {"noise": torch.randn(shape, generator=generator, device=generator.device)}

    def losses(self, model: nn.Module, batch: dict[str, Tensor], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """The objective and its terms, means over the batch."""
        tokens = batch["tokens"].float()
        reconstruction, mean, logvar = model(tokens, draws["noise"])
        mse, cosine = reconstruction_errors(reconstruction, tokens)
        kl = kl_divergence(mean.float(), logvar.float()).mean()
        return {"loss": mse + cosine + self.kl_weight * kl, "mse": mse, "cosine": cosine, "kl": kl}

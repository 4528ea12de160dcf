"""AdamW steps that skip themselves where the gradient is not finite, without asking the device."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Optimisation:
    """Fused AdamW (betas 0.9 and `beta2`) with optional clipping of the global gradient norm.

    Args:
        model: whose parameters are trained.
        beta2: second-moment decay.
        weight_decay: decoupled weight decay of all parameters.
        clip_norm: largest norm of the gradient, or None.
    """

    def __init__(self, model: nn.Module, beta2: float, weight_decay: float, clip_norm: float | None) -> None:
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, betas=(0.9, beta2), weight_decay=weight_decay, fused=True)
        self.clip_norm = clip_norm

    def backward(self, loss: Tensor, share: float) -> None:
        """Add `share` times the gradient of `loss`; a gradient of NaN everywhere if the loss is not finite.

        So the norm of the gradient tells of either, and under DDP it tells every process.
        """
        seed = torch.where(loss.detach().isfinite(), share, torch.nan)
        loss.backward(seed.to(loss.dtype))

    def step(self, learning_rate: float) -> tuple[Tensor, Tensor]:
        """Move the weights, unless the gradient is not finite, and forget the gradient.

        Returns:
            Norm of the gradient before clipping, and whether the step was skipped: scalars on the device.
        """
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip_norm, norm)
        skipped = ~norm.isfinite()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        # The fused kernel leaves everything as it is where this flag is set: it is how GradScaler skips a step.
        self.optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm, skipped

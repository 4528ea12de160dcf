"""A task of the training loop that takes no time: points to be denoised by a small network."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor, nn

from sfd_cli.training.settings import LoopSettings

COUNT, BATCH = 37, 8
SETTINGS = LoopSettings(
    steps=12,
    batch_size=BATCH,
    learning_rate=1e-2,
    checkpoint_every=5,
    log_every=3,
    seed=7,
    ema_decay=0.9,
    clip_norm=0.5,
    warmup_steps=4,
    weight_decay=0.01,
)


class Regression:
    """Fit noisy values of fixed random points; `spoil` turns the data of some steps into NaN."""

    def __init__(self, spoil: range = range(0)) -> None:
        self.points = torch.randn(COUNT, 5, generator=torch.Generator().manual_seed(1))
        self.spoil = spoil
        self.fetched = 0

    def fetch(self, indices: np.ndarray, flips: np.ndarray) -> dict[str, Tensor]:
        points = self.points[torch.from_numpy(indices)] * torch.from_numpy(1 - 2 * flips)[:, None]
        if self.fetched in self.spoil:
            points = points * torch.nan
        self.fetched += 1
        return {"points": points}

    def draw(self, generator: torch.Generator, count: int) -> dict[str, Tensor]:
        return {"noise": torch.randn(count, 5, generator=generator, device=generator.device)}

    def losses(self, model: nn.Module, batch: dict[str, Tensor], draws: dict[str, Tensor]) -> dict[str, Tensor]:
        points = batch["points"]
        error = (model(points + draws["noise"]).float() - points).square().mean()
        return {"loss": error + 0.1, "error": error}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.SiLU(), nn.Linear(16, 5))


def deep_network() -> nn.Sequential:
    """A network with matrices inside blocks, as a transformer has them."""
    torch.manual_seed(0)
    blocks = nn.Sequential(nn.Linear(16, 24), nn.SiLU(), nn.Linear(24, 16))
    return nn.Sequential(OrderedDict(first=nn.Linear(5, 16), blocks=blocks, last=nn.Linear(16, 5)))


class Recorded(Regression):
    """The same, keeping what was drawn for every step."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[Tensor] = []

    def draw(self, generator: torch.Generator, count: int) -> dict[str, Tensor]:
        draws = super().draw(generator, count)
        self.drawn.append(draws["noise"].clone())
        return draws


def assert_same(a: nn.Module | None, b: nn.Module | None, tolerance: float = 0.0) -> None:
    assert a is not None
    assert b is not None
    for name, tensor in a.state_dict().items():
        torch.testing.assert_close(b.state_dict()[name], tensor, rtol=0, atol=tolerance)

"""The decoder's objective: what is drawn, and a step of it against a plain loop."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sfd_cli.config import TextureVAE
from sfd_cli.distributed.processes import Processes
from sfd_cli.networks.texture_pca import TexturePCA, TexturePCAConfig
from sfd_cli.training.settings import vae_loop
from sfd_cli.training.step import TrainingStep, seed_of_step
from sfd_cli.training.texture_decoder_task import TextureDecoderTask

SIDE, PATCH, CHANNELS = 16, 8, 6
SECTION = TextureVAE(
    compressor="pca",
    patch_size=PATCH,
    channels=CHANNELS,
    decoder_channels=[8, 16],
    norm_groups=4,
    batch_size=4,
    steps=10,
    learning_rate=1e-2,
    warmup_steps=2,
    l2_weight=3.0,
    edge_weight=0.7,
    decoder_noise=0.9,
    decoder_keep=0.4,
)
PIXELS = torch.randint(0, 256, (6, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def task(**changes: float) -> TextureDecoderTask:
    reader: Any = SimpleNamespace(manifest=range(6), size=SIDE, read=lambda indices: PIXELS[list(indices)])
    return TextureDecoderTask(reader, (CHANNELS, 2, 2), SECTION.model_copy(update=changes))


def network() -> TexturePCA:
    torch.manual_seed(1)
    patches = torch.randn(400, 3 * PATCH**2, dtype=torch.float64) * torch.linspace(1, 0.01, 3 * PATCH**2)
    config = TexturePCAConfig(PATCH, CHANNELS, decoder_channels=(8, 16), norm_groups=4)
    return TexturePCA.of_patches(patches.mean(0), torch.cov(patches.T), config)


def test_levels_are_small_more_often_than_large() -> None:
    """s = decoder_noise x u^2: a quarter of the range has half of the draws."""
    draws = task().draw(torch.Generator().manual_seed(0), 20_000)
    assert draws["noise"].shape == (20_000, CHANNELS, 2, 2)
    levels = draws["level"].double().flatten()
    assert draws["level"].shape == (20_000, 1, 1, 1)
    for share, quantile in ((0.25, 0.0625), (0.5, 0.25), (0.9, 0.81)):
        assert abs(levels.quantile(share) / 0.9 - quantile) < 0.01
    assert 0 <= levels.min() <= levels.max() <= 0.9
    noise = draws["noise"].double()
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01


@pytest.mark.parametrize(("keep", "fewest"), [(0.4, 3), (0.5, 3), (0.01, 1), (1.0, 6)])
def test_every_number_of_components_down_to_the_share_is_kept_equally_often(keep: float, fewest: int) -> None:
    kept = task(decoder_keep=keep).draw(torch.Generator().manual_seed(0), 30_000)["kept"]
    assert kept.shape == (30_000, 1, 1, 1)
    found, counts = kept.unique(return_counts=True)
    assert found.tolist() == [*range(fewest, CHANNELS + 1)]
    torch.testing.assert_close(counts / 30_000, torch.full((len(found),), 1 / len(found)), atol=0.015, rtol=0)


def plain_loss(model: TexturePCA, pixels: Tensor, draws: dict[str, Tensor]) -> Tensor:
    """By the formulas alone, an image at a time, in the model's own precision."""
    dtype = model.mean.dtype
    total = torch.zeros((), dtype=dtype)
    levels, counts = draws["level"].flatten().to(dtype), draws["kept"].flatten().tolist()
    noises = draws["noise"].to(dtype)
    for image, drawn, s, kept in zip(pixels.to(dtype) / 127.5 - 1, noises, levels, counts, strict=True):
        squares = image.reshape(3, 2, PATCH, 2, PATCH).permute(1, 3, 0, 2, 4).reshape(4, -1)
        latent = ((squares - model.mean) @ model.components.T).T.reshape(CHANNELS, 2, 2)
        unit = s * model.deviations.square().mean().sqrt()
        for channel in range(CHANNELS):
            spread = model.deviations[channel]
            latent[channel] += drawn[channel] / torch.sqrt(1 / spread**2 + 1 / unit**2)
        latent[kept:] = 0
        squares = latent.reshape(CHANNELS, 4).T @ model.components + model.mean
        linear = squares.reshape(2, 2, 3, PATCH, PATCH).permute(2, 0, 3, 1, 4).reshape(1, 3, SIDE, SIDE)
        folded = linear.reshape(3, 8, 2, 8, 2).permute(0, 2, 4, 1, 3).reshape(1, 12, 8, 8)
        assert model.decoder is not None
        added = model.decoder.unet(folded, torch.zeros(1)).sample
        error = linear + added.reshape(3, 2, 2, 8, 8).permute(0, 3, 1, 4, 2).reshape(1, 3, SIDE, SIDE) - image
        edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
        total = total + error.abs().mean() + 3.0 * error.square().mean() + 0.7 * edges
    return total / len(pixels)


def test_steps_are_those_of_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """All in float64: Adam goes by a gradient's sign where it is small, and makes much of what is rounded."""
    single = Tensor.float  # of the flag that Adam's kernel reads
    monkeypatch.setattr(Tensor, "float", lambda values: values.double() if values.ndim else single(values))
    indices, flips = np.array([4, 0, 3, 1]), np.array([0, 1, 1, 0])
    pixels = torch.stack([PIXELS[index].flip(-1) if flip else PIXELS[index] for index, flip in zip(indices, flips)])  # noqa: B905
    device = torch.device("cpu")
    step = TrainingStep(task(), network().double(), vae_loop(SECTION, device), Processes(), device)
    expected = network().double()
    assert expected.decoder is not None
    optimizer = torch.optim.AdamW(expected.decoder.parameters(), betas=(0.9, 0.999), weight_decay=0.0)
    for number, rate in enumerate((0.5e-2, 1e-2, 1e-2)):
        step(step.task.fetch(indices, flips))
        draws = task().draw(torch.Generator().manual_seed(seed_of_step(SECTION.seed, number)), 4)
        optimizer.zero_grad()
        plain_loss(expected, pixels, draws).backward()
        torch.nn.utils.clip_grad_norm_(expected.decoder.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    weights = step.model.state_dict()
    moved = 0.0
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=2e-5, msg=name)
        moved = max(moved, (tensor - network().state_dict()[name]).abs().max().item())
    assert moved > 5e-3
    for fixed in ("mean", "components", "deviations"):
        assert torch.equal(weights[fixed], network().double().state_dict()[fixed])

"""The space of composite latents: order of the streams, normalisation, and what makes two spaces one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sfd_cli.diffusion.latents import LatentSpace, Streams

SPACE = LatentSpace(texture=2, semantic=1, grid=2, mean=(1.0, -2.0, 0.5), std=(2.0, 4.0, 0.5))
TEXTURES = torch.tensor([5.0, 6.0])[None, :, None, None].expand(3, 2, 2, 2)
SEMANTICS = torch.full((3, 1, 2, 2), 2.0)


def test_streams_are_joined_textures_first_and_normalised_by_channel() -> None:
    x = SPACE.join(Streams(TEXTURES.half(), SEMANTICS.half()))
    assert (x.shape, x.dtype) == ((3, *SPACE.shape), torch.float32)
    expected = torch.tensor([(5 - 1) / 2, (6 + 2) / 4, (2 - 0.5) / 0.5])
    assert torch.equal(x, expected[None, :, None, None].expand_as(x))


def test_splitting_undoes_joining() -> None:
    raw = Streams(torch.randn(3, 2, 2, 2), torch.randn(3, 1, 2, 2))
    found = SPACE.split(SPACE.join(raw))
    torch.testing.assert_close(found.texture, raw.texture)
    torch.testing.assert_close(found.semantic, raw.semantic)
    x = torch.randn(3, 3, 2, 2)
    torch.testing.assert_close(SPACE.join(SPACE.split(x)), x)


def test_statistics_are_rounded_to_float32_once() -> None:
    """As data that was normalised by float32 tensors of float64 statistics, to the last bit."""
    mean, std = torch.rand(2, 3, dtype=torch.float64)
    textures, semantics = torch.randn(3, 2, 2, 2), torch.randn(3, 1, 2, 2)
    expected = (torch.cat((textures, semantics), dim=1) - mean.float()[:, None, None]) / std.float()[:, None, None]
    found = SPACE.scaled(mean.tolist(), std.tolist()).join(Streams(textures, semantics))
    assert torch.equal(found, expected)


def test_without_semantics_the_composite_is_the_textures() -> None:
    alone = LatentSpace(texture=2, semantic=0, grid=2, mean=(1.0, -2.0), std=(2.0, 4.0))
    x = alone.join(Streams(TEXTURES, SEMANTICS))
    assert torch.equal(x, SPACE.join(Streams(TEXTURES, SEMANTICS))[:, :2])
    assert alone.views(x).semantic.shape == (3, 0, 2, 2)


def test_views_share_memory_with_the_latent() -> None:
    x = torch.zeros(1, 3, 2, 2)
    texture, semantic = SPACE.views(x)
    texture += 1
    semantic += 2
    assert x[0, :, 0, 0].tolist() == [1, 1, 2]


def test_values_of_streams_spread_over_their_channels() -> None:
    spread = SPACE.spread(Streams(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])))
    assert spread.shape == (2, 3, 1, 1)
    assert spread.flatten(1).tolist() == [[1, 1, 3], [2, 2, 4]]


def test_statistics_used_in_inference_can_be_used_in_training() -> None:
    space = replace(SPACE, mean=(0.25, 0.5, 0.75))
    with torch.inference_mode():
        space.split(torch.zeros(1, 3, 2, 2))
    x = torch.zeros(1, 3, 2, 2, requires_grad=True)
    space.split(x).texture.sum().backward()
    assert x.grad is not None
    assert x.grad[0, :, 0, 0].tolist() == [2, 4, 0]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"grid": 4}, ("grid", "4", "2")),
        ({"texture": 1, "semantic": 2}, ("texture", "1", "2")),
        ({"mean": (1.0, -2.0, 0.6)}, ("statistics",)),
        ({"std": (2.0, 4.0, 0.6)}, ("statistics",)),
        ({"mean": (), "std": ()}, ()),
        ({}, ()),
    ],
)
def test_spaces_differ_in_layout_or_in_statistics_that_both_know(
    changed: dict[str, object], named: tuple[str, ...]
) -> None:
    difference = SPACE.difference(replace(SPACE, **changed))  # type: ignore[arg-type]
    assert (difference is None) == (not named)
    assert all(part in (difference or "") for part in named)


def test_statistics_survive_json_and_a_layout_alone_cannot_normalise() -> None:
    layout = LatentSpace(2, 1, 2)
    assert layout.scaled(**SPACE.statistics) == SPACE
    assert SPACE.is_scaled
    assert not layout.is_scaled
    with pytest.raises(ValueError, match="statistics"):
        layout.join(Streams(TEXTURES, SEMANTICS))
    with pytest.raises(ValueError, match="statistics"):
        layout.split(torch.zeros(1, 3, 2, 2))


@pytest.mark.parametrize("name", ["mean", "std"])
def test_statistics_of_another_number_of_channels_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        replace(SPACE, **{name: (1.0, 2.0)})  # type: ignore[arg-type]


def test_statistics_are_float32_on_the_device_of_the_latents_whatever_the_defaults() -> None:
    """The meta device computes nothing and refuses to mix with others."""
    space = replace(SPACE, mean=(0.25, 0.5, 0.75))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        joined = space.join(Streams(TEXTURES.to("meta"), SEMANTICS.to("meta")))
        split = space.split(joined)
    finally:
        torch.set_default_dtype(before)
    assert {(part.device.type, part.dtype) for part in (joined, *split)} == {("meta", torch.float32)}


def test_a_mean_without_a_standard_deviation_is_no_scale() -> None:
    assert not LatentSpace(texture=1, semantic=0, grid=2, mean=(0.0,)).is_scaled
    assert not LatentSpace(texture=1, semantic=0, grid=2, std=(1.0,)).is_scaled
    assert LatentSpace(texture=1, semantic=0, grid=2, mean=(0.0,), std=(1.0,)).is_scaled

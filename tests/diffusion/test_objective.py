"""The defining properties of the objective."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfd_cli.diffusion import objective
from sfd_cli.diffusion.latents import LatentSpace, Streams
from sfd_cli.diffusion.schedule import AsynchronousSchedule

SHAPE = (3, 6, 4, 4)
SEMANTIC = 2
SPACE = LatentSpace(texture=4, semantic=SEMANTIC, grid=4)


def _latents(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0, 1))
def test_each_stream_is_interpolated_at_its_own_time(t_texture: float, t_semantic: float) -> None:
    data, noise = _latents(0), _latents(1)
    times = Streams(torch.full((3,), t_texture), torch.full((3,), t_semantic))
    mixed = SPACE.views(objective.interpolate(data, noise, times, SPACE))
    for stream, t, x, eps in zip(
        mixed,
        (t_texture, t_semantic),
        SPACE.views(data),
        SPACE.views(noise),
        strict=True,
    ):
        torch.testing.assert_close(stream, t * x + (1 - t) * eps)


def test_the_velocity_target_is_the_interpolants_derivative() -> None:
    data, noise = _latents(0).double(), _latents(1).double()
    times = [torch.full((3,), t).double() for t in (0.4, 0.6)]
    low, high = (objective.interpolate(data, noise, Streams(t, t), SPACE) for t in times)
    torch.testing.assert_close((high - low) / 0.2, objective.velocity_target(data, noise))


def test_a_perfect_prediction_costs_nothing() -> None:
    target = _latents(0)
    assert objective.velocity_mse(target, target, SPACE, 2.0).tolist() == [0, 0, 0]
    assert objective.velocity_cosine(target, target).abs().max() < 1e-6


def test_the_semantic_weight_weighs_semantic_channels_only() -> None:
    target = torch.zeros(SHAPE)
    texture, semantic = torch.zeros(SHAPE), torch.zeros(SHAPE)
    texture[:, :-SEMANTIC], semantic[:, -SEMANTIC:] = 1, 1
    share = SEMANTIC / SHAPE[1]
    mse = objective.velocity_mse
    assert mse(texture, target, SPACE, 5.0).tolist() == pytest.approx([1 - share] * 3)
    assert mse(semantic, target, SPACE, 5.0).tolist() == pytest.approx([5 * share] * 3)
    assert mse(semantic, target, LatentSpace(6, 0, 4), 5.0).tolist() == pytest.approx([share] * 3)


def test_the_cosine_is_over_channels_at_every_position_and_the_mean_over_positions() -> None:
    prediction, target = (torch.randn((2, 3, 4, 5), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    for image, found in enumerate(objective.velocity_cosine(prediction, target)):
        lengths = prediction[image].norm(dim=0) * target[image].norm(dim=0)
        cosines = (prediction[image] * target[image]).sum(dim=0) / lengths
        torch.testing.assert_close(found, 1 - cosines.mean())


def test_repa_is_the_cosine_of_tokens_their_squared_error_or_the_mean_of_both() -> None:
    projection, features = (torch.randn((2, 5, 7), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    lengths = projection.norm(dim=2) * features.norm(dim=2)
    cosine = 1 - ((projection * features).sum(dim=2) / lengths).sum(dim=1) / 5
    mse = ((projection - features) ** 2).sum(dim=(1, 2)) / 35
    torch.testing.assert_close(objective.repa(projection, features, "cos"), cosine)
    torch.testing.assert_close(objective.repa(projection, features, "mse"), mse)
    torch.testing.assert_close(objective.repa(projection, features, "cos_mse"), (cosine + mse) / 2)


def test_one_images_loss_does_not_depend_on_the_others() -> None:
    prediction, target = _latents(0), _latents(1)
    alone = objective.velocity_mse(prediction[:1], target[:1], SPACE, 2.0)
    torch.testing.assert_close(objective.velocity_mse(prediction, target, SPACE, 2.0)[:1], alone)
    alone = objective.velocity_cosine(prediction[:1], target[:1])
    torch.testing.assert_close(objective.velocity_cosine(prediction, target)[:1], alone)


def test_the_cosine_sees_direction_and_not_length() -> None:
    target = _latents(0)
    assert objective.velocity_cosine(3 * target, target).abs().max() < 1e-6
    torch.testing.assert_close(objective.velocity_cosine(-target, target), torch.full((3,), 2.0))


@settings(deadline=None)
@given(st.floats(0, 1))
def test_without_an_offset_the_objective_is_plain_flow_matching(u: float) -> None:
    data, noise = _latents(0), _latents(1)
    times = AsynchronousSchedule(0.0).times(torch.full((3,), u))
    mixed = objective.interpolate(data, noise, times, SPACE)
    torch.testing.assert_close(mixed, u * data + (1 - u) * noise)
    predicted, target = _latents(2), objective.velocity_target(data, noise)
    plain = (predicted - (data - noise)).square().flatten(1).mean(1)
    torch.testing.assert_close(objective.velocity_mse(predicted, target, SPACE, 1.0), plain)


TIMES = Streams(torch.tensor([0.0, 0.5, 0.96]), torch.tensor([0.3, 0.95, 1.0]))


def test_the_velocity_of_clean_latents_is_what_is_left_over_the_time_left() -> None:
    data, noisy = _latents(0), _latents(1)
    found = objective.velocity_of_data(data, noisy, TIMES, SPACE)
    for image, (texture, semantic) in enumerate([(1.0, 0.7), (0.5, 0.05), (0.05, 0.05)]):
        left = torch.tensor([texture] * 4 + [semantic] * 2)[:, None, None]
        torch.testing.assert_close(found[image], (data[image] - noisy[image]) / left, rtol=1e-5, atol=0)


@settings(deadline=None)
@given(st.floats(0, 0.949), st.floats(0, 0.949))
def test_the_velocity_of_the_true_latents_is_the_target_where_time_is_left(t_texture: float, t_semantic: float) -> None:
    data, noise = _latents(0).double(), _latents(1).double()
    times = Streams(torch.full((3,), t_texture).double(), torch.full((3,), t_semantic).double())
    found = objective.velocity_of_data(data, objective.interpolate(data, noise, times, SPACE), times, SPACE)
    torch.testing.assert_close(found, objective.velocity_target(data, noise))


def test_a_stream_that_is_all_data_has_a_finite_velocity() -> None:
    data = _latents(0)
    done = Streams(torch.ones(3), torch.ones(3))
    assert not objective.velocity_of_data(data, data, done, SPACE).any()
    torch.testing.assert_close(objective.velocity_of_data(data + 1, data, done, SPACE), torch.full(SHAPE, 20.0))


def test_clean_latents_in_bfloat16_are_divided_in_float32() -> None:
    data, noisy = _latents(0).bfloat16(), _latents(1)
    found = objective.velocity_of_data(data, noisy, TIMES, SPACE)
    assert found.dtype == torch.float32
    assert torch.equal(found, objective.velocity_of_data(data.float(), noisy, TIMES, SPACE))
    assert objective.velocity_of_data(data, noisy.bfloat16(), TIMES, SPACE).dtype == torch.float32


def test_weights_of_streams_multiply_errors_and_enter_the_cosine_as_products() -> None:
    """By sums over channels, in the order in which they are written down."""
    prediction, target = _latents(2), _latents(3)
    generator = torch.Generator().manual_seed(4)
    pair = Streams(torch.rand(3, generator=generator), torch.rand(3, generator=generator))
    weights = SPACE.spread(pair)
    mse = objective.velocity_mse(prediction, target, SPACE, 2.0, weights)
    cosine = objective.velocity_cosine(prediction, target, weights)
    channels, side = SPACE.channels, SPACE.grid
    for image in range(3):
        own = [pair.texture[image].item()] * SPACE.texture + [pair.semantic[image].item()] * SPACE.semantic
        beta = [1.0] * SPACE.texture + [2.0] * SPACE.semantic
        squares = (prediction - target)[image].square().sum(dim=(1, 2)).tolist()
        expected = sum(b * w * error for b, w, error in zip(beta, own, squares, strict=True)) / (channels * side**2)
        assert mse[image].item() == pytest.approx(expected, rel=1e-5)
        distances = []
        for row in range(side):
            for column in range(side):
                v, u = (one[image, :, row, column].tolist() for one in (prediction, target))
                dot, length, other = (
                    sum(w * a * b for w, a, b in zip(own, *both, strict=True)) for both in ((v, u), (v, v), (u, u))
                )
                distances.append(1 - dot / math.sqrt(length * other))
        assert cosine[image].item() == pytest.approx(sum(distances) / len(distances), rel=1e-4)


def test_a_stream_of_weight_zero_has_no_part_in_the_loss_and_weights_of_one_change_nothing() -> None:
    prediction, target = _latents(2), _latents(3)
    ones = torch.ones(3)
    only_textures, all_of_both = SPACE.spread(Streams(2 * ones, 0 * ones)), SPACE.spread(Streams(ones, ones))
    otherwise = prediction.clone()
    otherwise[:, SPACE.texture :] = 7.0
    for term in (lambda *both: objective.velocity_mse(*both[:2], SPACE, 2.0, both[2]), objective.velocity_cosine):
        torch.testing.assert_close(term(prediction, target, only_textures), term(otherwise, target, only_textures))
        assert not torch.allclose(term(prediction, target, all_of_both), term(otherwise, target, all_of_both))
        torch.testing.assert_close(term(prediction, target, all_of_both), term(prediction, target, None))


def _by_hand(hidden: np.ndarray, group: int, temperature: float) -> tuple[float, np.ndarray]:
    """The dispersive loss, mean over groups, pair by pair in float64, and its gradient in closed form."""
    flat = hidden.astype(np.float64).reshape(len(hidden), -1)
    values, gradient = [], np.zeros_like(flat)
    for first in range(0, len(flat), group):
        rows = range(first, first + group)
        near = {
            (i, j): math.exp(
                -sum((a - b) ** 2 for a, b in zip(flat[i], flat[j], strict=True)) / flat.shape[1] / temperature
            )
            for i in rows
            for j in rows
        }
        total = sum(near.values())
        values.append(math.log(total / group**2))
        for i, j in near:  # of exp(-D / temperature) by z_i, as often again as j of (j, i)
            gradient[i] -= 2 * near[i, j] / total * 2 * (flat[i] - flat[j]) / flat.shape[1] / temperature
    groups = len(flat) // group
    return sum(values) / groups, gradient.reshape(hidden.shape) / groups


@pytest.mark.parametrize(("group", "temperature"), [(2, 0.5), (4, 0.5), (4, 3.0), (8, 1.0)])
def test_the_dispersive_loss_and_its_gradient_are_those_of_the_formula(group: int, temperature: float) -> None:
    hidden = torch.randn((8, 3, 5), generator=torch.Generator().manual_seed(group)).requires_grad_()
    found = objective.dispersive(hidden, group, temperature)
    assert found.shape == (8 // group,)
    value, gradient = _by_hand(hidden.detach().numpy(), group, temperature)
    assert found.mean().item() == pytest.approx(value, rel=1e-5)
    found.mean().backward()
    assert hidden.grad is not None
    np.testing.assert_allclose(hidden.grad.numpy(), gradient, rtol=1e-4, atol=1e-7)


def test_the_dispersive_loss_is_from_minus_the_log_of_the_group_to_zero() -> None:
    hidden = _latents(0).flatten(2)
    assert objective.dispersive(hidden[:1].expand(4, -1, -1), 4, 0.5).item() == pytest.approx(0, abs=1e-6)
    assert objective.dispersive(100 * hidden, 3, 0.5).item() == pytest.approx(-math.log(3), rel=1e-6)


def test_the_dispersive_loss_keeps_apart_what_is_in_one_group_alone() -> None:
    hidden = torch.randn((6, 4, 5), generator=torch.Generator().manual_seed(0))
    both = objective.dispersive(hidden, 3, 0.5)
    torch.testing.assert_close(both[:1], objective.dispersive(hidden[:3], 3, 0.5))
    torch.testing.assert_close(both[1:], objective.dispersive(hidden[3:], 3, 0.5))
    torch.testing.assert_close(both[1:], objective.dispersive(hidden[[5, 3, 4]], 3, 0.5))
    assert not torch.isclose(both.mean(), objective.dispersive(hidden, 6, 0.5)[0])


def test_what_hidden_states_have_in_common_costs_the_dispersive_loss_no_digits() -> None:
    hidden = torch.randn((4, 8, 5), generator=torch.Generator().manual_seed(0))
    common = 1000 * torch.randn((8, 5), generator=torch.Generator().manual_seed(1))
    exact = objective.dispersive((hidden.double() + common.double()), 4, 0.5).float()
    torch.testing.assert_close(objective.dispersive(hidden + common, 4, 0.5), exact, rtol=1e-3, atol=0)


def test_the_dispersive_loss_is_computed_in_float32_under_autocast() -> None:
    hidden = torch.randn((4, 8, 5), generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = objective.dispersive(hidden.float(), 4, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        for given in (hidden, hidden.float()):
            found = objective.dispersive(given, 4, 0.5)
            assert found.dtype == torch.float32
            assert torch.equal(found, expected)

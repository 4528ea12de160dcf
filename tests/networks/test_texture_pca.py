"""Principal components of pixel patches: what they keep, and where pixels go."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sfd_cli.data.moments import Moments
from sfd_cli.errors import SettingError
from sfd_cli.networks.gaussian import draw
from sfd_cli.networks.principal import leading_directions
from sfd_cli.networks.texture_pca import TexturePCA, TexturePCAConfig

SIDE, PATCH, WIDTH = 12, 4, 48


def images(count: int = 60, seed: int = 0) -> Tensor:
    """Images (count, 3, 12, 12) whose neighbouring pixels are alike, around a grey that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=generator) * 1.6 - 0.9
    noise = 0.1 * torch.rand(count, 3, SIDE, SIDE, generator=generator)
    return torch.nn.functional.interpolate(coarse, SIDE, mode="bilinear", align_corners=True) + noise


def patches_of(values: Tensor) -> np.ndarray:
    """Patches (n, 48) by reshaping alone."""
    grid = SIDE // PATCH
    split = values.double().numpy().reshape(-1, 3, grid, PATCH, grid, PATCH)
    return split.transpose(0, 2, 4, 1, 3, 5).reshape(-1, WIDTH)


def fitted(values: Tensor, channels: int, batch: int = 7) -> TexturePCA:
    parts = [torch.from_numpy(patches_of(part)).numpy() for part in values.split(batch)]
    moments = Moments.merged(Moments.of(part, scatter=True) for part in parts)
    mean, covariance = torch.from_numpy(moments.mean), torch.from_numpy(moments.covariance())
    return TexturePCA.of_patches(mean, covariance, TexturePCAConfig(PATCH, channels))


@pytest.mark.parametrize("channels", [1, 5, 30])
def test_what_is_lost_is_the_variance_of_the_components_left_out(channels: int) -> None:
    values = images()
    pca = fitted(values, channels)
    patches = patches_of(values)
    singular = np.linalg.svd(patches - patches.mean(axis=0), compute_uv=False)
    lost = (pca.decode(pca.encode(values)[0]) - values).double().square().sum().item()
    assert lost == pytest.approx((singular[channels:] ** 2).sum(), rel=1e-4)


def test_all_components_lose_nothing() -> None:
    values = images()
    pca = fitted(values, WIDTH)
    torch.testing.assert_close(pca.decode(pca.encode(values)[0]), values, atol=1e-5, rtol=0)
    others = torch.randn(2, 3, 8, 20)
    torch.testing.assert_close(pca.decode(pca.encode(others)[0]), others, atol=1e-4, rtol=0)


def test_a_latent_is_shaped_as_the_texture_vaes() -> None:
    pca = fitted(images(), 5)
    mean, logvar = pca.encode(torch.zeros(2, 3, 8, 20))
    assert mean.shape == logvar.shape == (2, 5, 2, 5)
    assert (pca.latent_channels, pca.downsampling) == (5, 4)
    assert pca.decode(mean).shape == (2, 3, 8, 20)


def test_a_posterior_sample_is_the_components_themselves() -> None:
    pca = fitted(images(), 5)
    mean, logvar = pca.encode(images())
    torch.testing.assert_close(draw(mean, logvar, torch.randn_like(mean)), mean, atol=1e-5, rtol=0)


def test_components_are_orthonormal_uncorrelated_and_sorted_by_variance() -> None:
    values = images()
    pca = fitted(values, 6)
    torch.testing.assert_close(pca.components @ pca.components.T, torch.eye(6), atol=1e-5, rtol=0)
    latents = pca.encode(values)[0].transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(latents.mean(1), torch.zeros(6, dtype=torch.float64), atol=1e-5, rtol=0)
    covariance = torch.cov(latents, correction=0)
    leading = np.linalg.svd(patches_of(values) - patches_of(values).mean(axis=0), compute_uv=False)[:6] ** 2
    expected = torch.diag(torch.from_numpy(leading / latents.shape[1]))
    torch.testing.assert_close(covariance, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("colour", "row", "column"), [(0, 0, 0), (1, 2, 3), (2, 3, 1)])
def test_a_pixel_goes_to_its_place_in_the_patch_and_the_patch_to_its_place_in_the_latent(
    colour: int, row: int, column: int
) -> None:
    """A network that was not fitted has the pixels themselves for components: colours, then rows, then columns."""
    plain = TexturePCA(TexturePCAConfig(PATCH, WIDTH))
    image = torch.zeros(1, 3, SIDE, SIDE)
    image[0, colour, PATCH * 1 + row, PATCH * 2 + column] = 0.5
    latents, _ = plain.encode(image)
    assert latents.nonzero().tolist() == [[0, colour * PATCH**2 + row * PATCH + column, 1, 2]]
    assert torch.equal(plain.decode(latents), image)


def test_another_patch_moves_its_own_latent_pixel_alone() -> None:
    pca, before = fitted(images(), 5), images(1)
    after = before.clone()
    after[:, :, 4:8, 8:12] = after[:, :, 4:8, 8:12].roll(1, dims=-1)
    moved = (pca.encode(after)[0] - pca.encode(before)[0]).abs().amax(dim=(0, 1)) > 1e-6
    assert moved.nonzero().tolist() == [[1, 2]]


@given(batch=st.integers(1, 60))
def test_signs_and_components_do_not_depend_on_batches(batch: int) -> None:
    torch.testing.assert_close(fitted(images(), 5, batch).components, fitted(images(), 5).components, atol=1e-5, rtol=0)


def test_the_largest_entry_of_a_component_is_positive() -> None:
    components = fitted(images(), 12).components
    assert (components.gather(1, components.abs().argmax(1, keepdim=True)) > 0).all()
    torch.testing.assert_close(fitted(-images(), 12).components, components, atol=1e-5, rtol=0)


def test_of_two_largest_entries_of_a_component_the_first_is_positive_whatever_rounding_says() -> None:
    direction = torch.tensor([0.1, -0.7, 0.2, 0.7, -0.1], dtype=torch.float64)
    for nudged in (1, 3):
        nearly = direction.clone()
        nearly[nudged] *= 1 + 1e-12
        (found,) = leading_directions(torch.outer(nearly, nearly), 1)
        torch.testing.assert_close(found, -direction / direction.norm())


def test_more_components_than_a_patch_has_values_are_refused() -> None:
    with pytest.raises(SettingError) as refused:
        TexturePCAConfig(PATCH, WIDTH + 1)
    assert refused.value.subject == "channels"
    assert "48" in refused.value.problem

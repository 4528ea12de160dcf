"""Principal components of pixel patches: what they keep, and where pixels go."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sfd_cli.data.moments import Moments
from sfd_cli.errors import SettingError
from sfd_cli.formats.model_folder import load_model, save_model
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


def decoded(values: Tensor, channels: int, **decoder: object) -> TexturePCA:
    """Fitted, with a decoder behind the components."""
    torch.manual_seed(0)
    patches = torch.from_numpy(patches_of(values))
    config = TexturePCAConfig(PATCH, channels, **({"decoder_channels": (8, 16)} | decoder))  # type: ignore[arg-type]
    return TexturePCA.of_patches(patches.mean(0), torch.cov(patches.T, correction=0), config)


@pytest.mark.parametrize("levels", [(8,), (8, 16)])
def test_before_it_is_trained_a_decoder_changes_no_bit(levels: tuple[int, ...]) -> None:
    values = images()
    plain, pca = fitted(values, 6), decoded(values, 6, decoder_channels=levels)
    pca.components.copy_(plain.components)
    pca.mean.copy_(plain.mean)
    latents = plain.encode(values)[0]
    assert torch.equal(pca.encode(values)[0], latents)
    assert torch.equal(pca.decode(latents), plain.decode(latents))
    silent, all_of_them = torch.zeros(len(values), 1, 1, 1), torch.full((len(values), 1, 1, 1), 6)
    with torch.autocast("cpu", torch.bfloat16):  # of the U-Net alone
        assert torch.equal(pca.decode(latents), plain.decode(latents))
        assert torch.equal(pca(values, torch.randn_like(latents), silent, all_of_them), plain.decode(latents))
    assert pca.decoder is not None
    torch.nn.init.normal_(pca.decoder.unet.conv_out.weight)
    assert (pca.decode(latents) - plain.decode(latents)).abs().mean() > 0.1


def test_what_the_network_gives_for_a_folded_image_is_added_to_the_pixels_it_was_folded_from() -> None:
    class Same(torch.nn.Module):
        def forward(self, folded: Tensor, time: int) -> object:
            assert (folded.shape[1:], time) == ((12, SIDE // 2, SIDE // 2), 0)
            return type("Output", (), {"sample": folded})

    values = images()
    pca, plain = decoded(values, 6), fitted(values, 6)
    assert pca.decoder is not None
    pca.decoder.unet = Same()
    latents = plain.encode(values)[0]
    torch.testing.assert_close(pca.decode(latents), 2 * plain.decode(latents), atol=1e-5, rtol=0)


def test_deviations_are_those_of_the_components() -> None:
    values = images()
    pca = decoded(values, 6)
    latents = pca.encode(values)[0].transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(pca.deviations.double(), latents.std(1, correction=0), rtol=1e-4, atol=0)
    assert "deviations" not in fitted(values, 6).state_dict()


@pytest.mark.parametrize("level", [0.05, 0.4, 1.5])
def test_noise_has_the_level_in_units_of_the_mean_variance_and_no_more_than_a_components_own_spread(
    level: float,
) -> None:
    """Seen in what is decoded: all components are an orthonormal basis, so encoding gives the noisy latents back."""
    pca = decoded(images(), WIDTH)
    spread = torch.linspace(0.05, 2, WIDTH, dtype=torch.float64).numpy()
    pca.deviations.copy_(torch.from_numpy(spread))
    values = torch.zeros(4000, 3, SIDE, SIDE)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(len(values), WIDTH, 3, 3, generator=generator)
    levels, kept = (torch.full((len(values), 1, 1, 1), value) for value in (level, WIDTH))
    seen = pca.encode(pca(values, noise, levels, kept))[0] - pca.encode(values)[0]
    measured = level * np.sqrt(np.square(spread).mean())
    expected = 1 / np.sqrt(1 / np.square(spread) + 1 / measured**2)
    found = seen.detach().transpose(0, 1).flatten(1).double().std(1).numpy()
    np.testing.assert_allclose(found, expected, rtol=0.02)
    assert (found < 1.02 * spread).all()


def test_of_noisy_components_only_the_leading_ones_are_kept() -> None:
    pca, values = decoded(images(), WIDTH), images(4)
    noise = torch.randn(4, WIDTH, 3, 3, generator=torch.Generator().manual_seed(3))
    level, kept = torch.tensor([0.0, 0.3, 0.3, 1.0])[:, None, None, None], torch.tensor([1, 7, WIDTH, 20])
    latents = pca.encode(values)[0] + pca.noise_deviations(level) * noise
    for image, count in enumerate(kept.tolist()):
        latents[image, count:] = 0
    seen = pca.encode(pca(values, noise, level, kept[:, None, None, None]))[0]
    torch.testing.assert_close(seen, latents, atol=1e-5, rtol=0)


def test_the_noise_of_extreme_levels_and_of_constant_components_is_finite() -> None:
    pca = decoded(images(), 3)
    pca.deviations.copy_(torch.tensor([2.0, 0.5, 0.0]))
    found = pca.noise_deviations(torch.tensor([0.0, 1e-30, 1e-3, 1e9]).reshape(4, 1, 1, 1))[:, :, 0, 0]
    unit = float(np.sqrt((4 + 0.25) / 3))
    expected = torch.tensor([[0, 0, 0], [0, 0, 0], [1e-3 * unit, 1e-3 * unit, 0], [2.0, 0.5, 0]])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_a_folder_from_before_there_were_decoders_opens(tmp_path: Path) -> None:
    pca = fitted(images(), 5)
    save_model(tmp_path, "TexturePCA", pca.config, {"model": pca.state_dict()}, {})
    description = json.loads((tmp_path / "config.json").read_text())
    description["config"] = {"patch_size": PATCH, "channels": 5}
    (tmp_path / "config.json").write_text(json.dumps(description))
    found = load_model(tmp_path, "model")
    assert isinstance(found, TexturePCA)
    assert found.config == pca.config
    assert torch.equal(found.decode(torch.ones(1, 5, 2, 2)), pca.decode(torch.ones(1, 5, 2, 2)))


def test_a_decoder_comes_back_from_its_folder(tmp_path: Path) -> None:
    pca = decoded(images(), 5)
    assert pca.decoder is not None
    torch.nn.init.normal_(pca.decoder.unet.conv_out.weight)
    save_model(tmp_path, "TexturePCA", pca.config, {"model": pca.state_dict()}, {})
    found = load_model(tmp_path, "model")
    assert isinstance(found, TexturePCA)
    assert found.config == pca.config
    latents = torch.randn(2, 5, 3, 3)
    assert torch.equal(found.decode(latents), pca.eval().decode(latents))


def test_a_decoder_whose_norms_do_not_fit_is_refused() -> None:
    with pytest.raises(SettingError) as refused:
        TexturePCAConfig(PATCH, 5, decoder_channels=(16, 20), norm_groups=8)
    assert (refused.value.subject, "20" in refused.value.problem) == ("norm_groups", True)

"""PSNR, SSIM and LPIPS against what others compute."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refusal
from torch import Tensor
from torch_fidelity import sample_similarity_lpips as published
from torchvision.models import vgg16

from sfd_cli.config import Fid, Settings
from sfd_cli.evaluation import lpips
from sfd_cli.evaluation.image_fidelity import psnr, ssim
from sfd_cli.evaluation.lpips import Lpips, open_lpips
from sfd_cli.evaluation.reasons import NotComputable
from sfd_cli.weights.registry import Https, Weights


def pictures() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A picture (24, 32, 3) uint8, the same with noise, and mirrored."""
    generator = np.random.default_rng(7)
    ramp = np.add.outer(np.arange(24) * 7, np.arange(32) * 3)[:, :, None] + np.array([0, 20, 40])
    picture = (ramp % 256).astype(np.uint8)
    noisy = np.clip(picture.astype(int) + generator.integers(-30, 31, picture.shape), 0, 255).astype(np.uint8)
    return picture, noisy, picture[:, ::-1].copy()


def batch(*images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy())


def similarity_in_numpy(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM of two images (H, W), as Wang et al. define it: one window at a time."""
    x, y = x.astype(float), y.astype(float)
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    found = []
    for row in range(x.shape[0] - 10):
        for column in range(x.shape[1] - 10):
            a, b = (image[row : row + 11, column : column + 11] for image in (x, y))
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            cov = (window * (a - mean_a) * (b - mean_b)).sum()
            c1, c2 = 2.55**2, 7.65**2
            found.append(
                (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
            )
    return float(np.mean(found))


def test_psnr_and_ssim_are_those_of_scikit_image() -> None:
    """Of scikit-image 0.25.2, with gaussian_weights, sigma 1.5 and use_sample_covariance off, at data_range 255."""
    picture, noisy, mirrored = pictures()
    pair = batch(picture, picture), batch(noisy, mirrored)
    assert psnr(*pair).tolist() == pytest.approx([23.382092829067034, 11.545707923951705], rel=1e-12)
    assert ssim(*pair).tolist() == pytest.approx([0.5341093398210052, 0.6943619234938528], rel=1e-12)


def test_ssim_is_the_mean_over_windows_and_colours() -> None:
    picture, noisy, _ = pictures()
    expected = np.mean([similarity_in_numpy(picture[:, :, colour], noisy[:, :, colour]) for colour in range(3)])
    assert ssim(batch(picture), batch(noisy)).item() == pytest.approx(expected, rel=1e-10)


def test_equal_images_are_as_near_as_can_be_and_have_finite_numbers() -> None:
    picture, _, _ = pictures()
    assert psnr(batch(picture), batch(picture)).item() == pytest.approx(10 * np.log10(255**2 / 1e-4))
    assert ssim(batch(picture), batch(picture)).item() == pytest.approx(1, abs=1e-12)


def test_images_smaller_than_the_window_have_no_ssim() -> None:
    small = torch.zeros(1, 3, 10, 12, dtype=torch.uint8)
    with pytest.raises(NotComputable, match="12x10"):
        ssim(small, small)
    assert ssim(*(torch.zeros(1, 3, 11, 11, dtype=torch.uint8),) * 2).item() == 1


@pytest.fixture(scope="module")
def weights() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Random ones of VGG-16's convolutions, and of the channels, which are not negative."""
    with torch.device("meta"):
        shapes = {f"features.{name}": part.shape for name, part in vgg16().features.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    network = {
        # As He et al. initialise, so that no layer's features vanish.
        name: torch.randn(shape, generator=generator) * ((2 / shape[1:].numel()) ** 0.5 if len(shape) > 1 else 0.1)
        for name, shape in shapes.items()
    }
    widths = (64, 128, 256, 512, 512)
    layers = {
        f"lin{number}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator)
        for number, width in enumerate(widths)
    }
    return network, layers


def test_lpips_is_what_torch_fidelity_computes_with_the_same_weights(
    weights: tuple[dict[str, Tensor], dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, layers = weights
    with torch.device("meta"):
        features = vgg16().features
    features.load_state_dict({name.removeprefix("features."): part for name, part in network.items()}, assign=True)
    monkeypatch.setattr(
        published, "torchvision_load_pretrained_vgg16", lambda: SimpleNamespace(features=features.requires_grad_(False))
    )
    # The network's own entries come from above.
    monkeypatch.setattr(published, "load_state_dict_from_url", lambda *args, **kwargs: layers)
    theirs = published.SampleSimilarityLPIPS("lpips")
    images = batch(*pictures())
    others = images.roll(1, dims=0)
    expected = theirs(images, others).flatten()
    assert Lpips(network, layers)(images, others).tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert expected.min() > 0.01


def test_lpips_of_equal_images_is_zero_and_its_batches_do_not_matter(
    weights: tuple[dict[str, Tensor], dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    distance, images = Lpips(*weights), batch(*pictures())
    assert distance(images, images).tolist() == [0, 0, 0]
    whole = distance(images, images.flip(0))
    monkeypatch.setattr(lpips, "AT_ONCE", 2)
    assert distance(images, images.flip(0)).tolist() == pytest.approx(whole.tolist(), rel=1e-5)


def test_weights_on_this_machine_are_used_and_none_are_fetched(
    weights: tuple[dict[str, Tensor], dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SFD_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def entry(name: str, *kinds: Any) -> Weights:
        return Weights(name, f"{name}.pth", Https("https://nowhere.invalid/x.pth"), "a test", kind="metric")

    monkeypatch.setattr(lpips, "find_weights", entry)
    settings, device = Settings(), torch.device("cpu")
    with pytest.raises(NotComputable, match=r"fetch vgg16.*fetch lpips_vgg16"):
        open_lpips(settings, device)
    network, layers = weights
    torch.save(layers, tmp_path / "lpips_vgg16.pth")
    with pytest.raises(NotComputable, match="fetch vgg16") as caught:
        open_lpips(settings, device)
    assert "lpips_vgg16" not in str(caught.value)
    torch.save(network, tmp_path / "vgg16.pth")
    images = batch(*pictures())
    found = open_lpips(settings, device)(images, images.flip(0))
    assert torch.equal(found, Lpips(network, layers)(images, images.flip(0)))
    with pytest.raises(NotComputable, match=r"fid\.lpips: none"):
        open_lpips(settings.model_copy(update={"fid": Fid(lpips="none")}), device)
    torch.save({"lin0.model.1.weight": torch.ones(3)}, tmp_path / "lpips_vgg16.pth")
    with refusal("LPIPS", "shape"):
        open_lpips(settings, device)

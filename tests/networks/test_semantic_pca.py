"""Principal components as the semantic compressor: what it keeps, and that it is a drop-in for the Semantic VAE."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sfd_cli.data.moments import Moments
from sfd_cli.errors import SettingError
from sfd_cli.networks.gaussian import draw
from sfd_cli.networks.semantic_pca import SemanticPCA, SemanticPCAConfig


def tokens(rank: int, width: int = 8, count: int = 40, seed: int = 0) -> Tensor:
    """Tokens (count, 4, width) around a mean, in a subspace of `rank` dimensions."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(width, rank, generator=generator))[0].T
    scales = torch.linspace(3.0, 1.0, rank)
    return torch.randn(count, 4, rank, generator=generator) * scales @ basis + torch.arange(float(width))


def fitted(values: Tensor, channels: int, batch: int = 7) -> SemanticPCA:
    moments = Moments.merged(Moments.of(part.numpy(), scatter=True) for part in values.split(batch))
    return SemanticPCA.of_tokens(torch.from_numpy(moments.mean), torch.from_numpy(moments.covariance()), channels)


def test_tokens_of_a_subspace_come_back_exactly() -> None:
    values = tokens(rank=3)
    pca = fitted(values, channels=3)
    mean, logvar = pca.encode(values)
    assert mean.shape == logvar.shape == (40, 4, 3)
    torch.testing.assert_close(pca.decode(mean), values, atol=1e-4, rtol=0)


def test_components_are_orthonormal_centred_and_sorted_by_variance() -> None:
    values = tokens(rank=8, count=200)
    pca = fitted(values, channels=4)
    torch.testing.assert_close(pca.components @ pca.components.T, torch.eye(4), atol=1e-5, rtol=0)
    latents, _ = pca.encode(values)
    variances = latents.flatten(0, 1).var(0, unbiased=False)
    torch.testing.assert_close(latents.flatten(0, 1).mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    assert variances.tolist() == sorted(variances.tolist(), reverse=True)
    leading = torch.linalg.eigvalsh(torch.corrcoef(values.flatten(0, 1).T)).flip(0)[:4]
    torch.testing.assert_close(variances, leading, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(
        torch.cov(latents.flatten(0, 1).T, correction=0), torch.diag(variances), atol=1e-3, rtol=0
    )


@given(batch=st.integers(1, 40))
def test_how_the_tokens_are_batched_does_not_matter(batch: int) -> None:
    values = tokens(rank=8)
    one, other = fitted(values, 2), fitted(values, 2, batch)
    torch.testing.assert_close(one.components, other.components, atol=1e-5, rtol=0)


def test_a_posterior_sample_is_the_components_themselves() -> None:
    values = tokens(rank=4)
    mean, logvar = fitted(values, 2).encode(values)
    torch.testing.assert_close(draw(mean, logvar, torch.randn_like(mean)), mean, atol=1e-5, rtol=0)


def test_more_components_than_the_tokens_are_wide_are_refused() -> None:
    with pytest.raises(SettingError) as refused:
        SemanticPCAConfig(feature_width=8, channels=9)
    assert refused.value.subject == "channels"

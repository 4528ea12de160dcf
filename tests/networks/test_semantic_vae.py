import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference_files import contents, part

from sfd_cli.errors import SettingError
from sfd_cli.formats.format import FormatError
from sfd_cli.formats.reference_semantic_vae import semantic_vae_from_reference
from sfd_cli.networks.semantic_vae import SemanticVAE, SemanticVAEConfig
from sfd_cli.networks.tiles import join_tiles, split_tiles

WEIGHTS = part("semvae", "model.")
TOKENS = contents("semvae")["features"]


def reference_vae() -> SemanticVAE:
    config, weights = semantic_vae_from_reference(WEIGHTS, heads=4)
    vae = SemanticVAE(config)
    vae.load_state_dict(weights)
    return vae.eval().requires_grad_(False)


def test_the_architecture_is_read_off_the_tensors_of_a_published_file() -> None:
    config, _ = semantic_vae_from_reference(WEIGHTS, heads=4)
    assert config == SemanticVAEConfig(feature_width=48, channels=4, width=64, depth=2, heads=4)


def test_every_weight_of_the_reference_finds_its_place() -> None:
    _, converted = semantic_vae_from_reference(WEIGHTS, heads=4)
    assert sorted(tensor.data_ptr() for tensor in converted.values()) == sorted(
        tensor.data_ptr() for tensor in WEIGHTS.values()
    )


def test_a_checkpoint_that_does_not_fit_is_refused_by_the_name_of_the_key() -> None:
    with pytest.raises(FormatError, match=r"encoder\.3\.bias"):
        semantic_vae_from_reference({key: tensor for key, tensor in WEIGHTS.items() if key != "encoder.3.bias"}, 4)
    with pytest.raises(FormatError, match=r"quantiser\.weight"):
        semantic_vae_from_reference(WEIGHTS | {"quantiser.weight": torch.zeros(1)}, 4)
    with pytest.raises(FormatError, match="5 heads"):
        semantic_vae_from_reference(WEIGHTS, 5)
    with pytest.raises(FormatError, match=r"encoder\.0\.weight"):
        semantic_vae_from_reference({"weight": torch.zeros(1)}, 4)


def test_extreme_tokens_keep_the_variance_in_range() -> None:
    vae = reference_vae()
    vae.encoder.linear_out.weight.mul_(1e4)
    _, logvar = vae.encode(TOKENS)
    assert logvar.min() == -30
    assert logvar.max() == 20


def test_reordering_the_tokens_reorders_the_latents() -> None:
    vae = reference_vae()
    order = torch.randperm(TOKENS.shape[1], generator=torch.Generator().manual_seed(0))
    mean, _ = vae.encode(TOKENS)
    shuffled, _ = vae.encode(TOKENS[:, order])
    torch.testing.assert_close(shuffled, mean[:, order], atol=1e-5, rtol=1e-5)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(SettingError) as refused:
        SemanticVAEConfig(feature_width=48, channels=4, width=64, depth=2, heads=3)
    assert refused.value.subject == "heads"


def test_tiles_attend_to_themselves_only() -> None:
    torch.manual_seed(0)
    whole = SemanticVAE(SemanticVAEConfig(feature_width=6, channels=2, width=8, depth=2, heads=2)).eval()
    tiled = SemanticVAE(SemanticVAEConfig(feature_width=6, channels=2, width=8, depth=2, heads=2, tiles=2)).eval()
    tiled.load_state_dict(whole.state_dict())
    tokens = torch.randn(3, 16, 6)
    quadrant = tokens.unflatten(1, (4, 4))[:, 2:, :2].flatten(1, 2)
    mean, logvar = tiled.encode(tokens)
    for found, expected in zip((mean, logvar), whole.encode(quadrant), strict=True):
        torch.testing.assert_close(found.unflatten(1, (4, 4))[:, 2:, :2].flatten(1, 2), expected)
    decoded = tiled.decode(mean).unflatten(1, (4, 4))[:, 2:, :2].flatten(1, 2)
    torch.testing.assert_close(decoded, whole.decode(whole.encode(quadrant)[0]))


@given(side=st.integers(1, 4), tiles=st.integers(1, 4))
def test_tiles_joined_again_are_the_grid(side: int, tiles: int) -> None:
    tokens = torch.randn(2, (side * tiles) ** 2, 3)
    parts = split_tiles(tokens, tiles)
    assert parts.shape == (2 * tiles**2, side**2, 3)
    assert torch.equal(join_tiles(parts, tiles), tokens)
    corner = tokens.unflatten(1, (side * tiles, side * tiles))[0, :side, side * (tiles - 1) :].flatten(0, 1)
    assert torch.equal(parts[tiles - 1], corner)

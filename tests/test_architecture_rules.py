"""Rules of an architecture: the settings and the networks refuse the same numbers for the same field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from sfd_cli import config
from sfd_cli.errors import SettingError
from sfd_cli.networks.lightning_dit import LightningDiTConfig
from sfd_cli.networks.semantic_vae import SemanticVAEConfig
from sfd_cli.networks.texture_pca import TexturePCAConfig
from sfd_cli.networks.texture_vae import TextureVAEConfig


def transformer(**numbers: Any) -> LightningDiTConfig:
    return LightningDiTConfig(grid=2, in_channels=3, num_classes=2, feature_width=6, **{"repa_depth": 2, **numbers})


def semantic_vae(**numbers: Any) -> SemanticVAEConfig:
    return SemanticVAEConfig(feature_width=6, channels=2, depth=1, **numbers)


def texture_vae(**numbers: Any) -> TextureVAEConfig:
    return TextureVAEConfig(channels=2, **numbers)


def texture_pca(compressor: str, **numbers: Any) -> TexturePCAConfig:
    return TexturePCAConfig(patch_size=16, channels=4, **numbers)


@pytest.mark.parametrize(
    ("section", "network", "numbers", "key"),
    [
        (config.DiT, transformer, {"width": 32, "heads": 3}, "heads"),
        (config.DiT, transformer, {"width": 24, "heads": 4}, "heads"),
        (config.DiT, transformer, {"width": 30, "heads": 3, "rope": False}, "width"),
        (config.DiT, transformer, {"width": 32, "heads": 2, "depth": 1, "repa_depth": 2}, "repa_depth"),
        (config.SemVAE, semantic_vae, {"width": 10, "heads": 4}, "heads"),
        (
            config.TextureVAE,
            texture_pca,
            {"compressor": "pca", "decoder_channels": [32], "norm_groups": 9},
            "norm_groups",
        ),
        (config.TextureVAE, texture_vae, {"block_channels": [32, 48], "norm_groups": 32}, "norm_groups"),
        (config.TextureVAE, texture_vae, {"block_channels": [32, 32], "attention_levels": [2]}, "attention_levels"),
        (config.TextureVAE, texture_vae, {"block_channels": [32, 32], "attention_levels": [-1]}, "attention_levels"),
    ],
)
def test_settings_and_networks_refuse_the_same_numbers(
    section: type[config.Section], network: Callable[..., object], numbers: dict[str, Any], key: str
) -> None:
    with pytest.raises(SettingError) as built:
        network(**numbers)
    with pytest.raises(ValidationError) as read:
        section(**numbers)
    (problem,) = read.value.errors()
    assert (built.value.subject, problem["ctx"]["error"].subject) == (key, key)
    assert problem["ctx"]["error"].problem == built.value.problem


@pytest.mark.parametrize("numbers", [{"width": 32, "heads": 4}, {"width": 24, "heads": 4, "rope": False}])
def test_both_take_what_fits(numbers: dict[str, Any]) -> None:
    assert config.DiT(**numbers).width == transformer(**numbers).width


def test_a_depth_of_repa_means_nothing_without_it() -> None:
    assert config.DiT(depth=1, repa_depth=2, repa="none").repa_depth == 2

"""The objective of a transformer: the reference's terms, and how their weights enter."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusion_reference import load
from torch import Tensor

from sfd_cli.config import DiT
from sfd_cli.data.store import Field
from sfd_cli.diffusion.objective import dispersive
from sfd_cli.training.velocity_task import VelocityTask

TERMS = {"mse": "velocity_mse", "cosine": "velocity_cosine", "repa": "repa_cos"}


def reference_objective(**section: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the reference's network loses under the section's settings, and the reference's own terms."""
    reference = load("sfd")
    given, config = reference.loss, reference.model.config
    textures = config.in_channels - config.semantic_channels
    grid = (config.grid, config.grid)
    store = SimpleNamespace(
        fields={
            "texture": Field((2, textures, *grid)),
            "semantic": Field((2, config.semantic_channels, *grid)),
            "features": Field((2, config.grid**2, config.feature_width)),
        },
        statistics={"mean": np.zeros(config.in_channels), "std": np.ones(config.in_channels)},
        classes=range(config.num_classes),
    )
    task = VelocityTask(store, DiT(**{"repa": "stored"} | section), None, torch.device("cpu"))  # type: ignore[arg-type]
    batch = {
        "texture": given["data"][:, :textures],
        "semantic": given["data"][:, textures:],
        "features": given["repa_features"].flatten(2).transpose(1, 2),
        "labels": given["y"],
    }
    draws = {
        "level": given["t"],
        "noise": given["noise"],
        "dropped": torch.zeros(len(given["t"]), dtype=torch.bool),
    }
    expected = {name: given[key].mean() for name, key in TERMS.items()}
    return task.losses(reference.model, batch, draws), expected


def test_the_objective_is_the_references_in_all_its_terms() -> None:
    losses, expected = reference_objective()
    for name, value in (expected | {"loss": sum(expected.values(), torch.zeros(()))}).items():
        torch.testing.assert_close(losses[name], value, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("cosine", "repa"), [(0.5, 1.0), (1.0, 0.5), (0.5, 0.25), (0.0, 0.0)])
def test_the_weights_of_the_terms_enter_the_loss_linearly(cosine: float, repa: float) -> None:
    losses, expected = reference_objective(cosine_weight=cosine, repa_weight=repa)
    weighted = expected["mse"] + cosine * expected["cosine"] + repa * expected["repa"]
    torch.testing.assert_close(losses["loss"], weighted, rtol=0, atol=1e-5)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=0, atol=1e-5)


DISPERSIVE: dict[str, Any] = {"batch_size": 3, "dispersive_group": 3, "dispersive_temperature": 0.7}


@pytest.mark.parametrize("repa", ["stored", "none"])
@pytest.mark.parametrize("depth", [1, 2])
def test_the_dispersive_loss_is_of_the_tokens_after_its_block_and_enters_linearly(depth: int, repa: str) -> None:
    tokens: list[Tensor] = []
    keep = load("sfd").model.blocks[depth - 1].register_forward_hook(lambda *passed: tokens.append(passed[-1]))
    try:
        losses, expected = reference_objective(repa=repa, dispersive_weight=0.25, dispersive_depth=depth, **DISPERSIVE)
    finally:
        keep.remove()
    found = dispersive(tokens[0], 3, 0.7).mean()
    assert found < -1e-3
    torch.testing.assert_close(losses["dispersive"], found, rtol=0, atol=0)
    others = sum((expected[name] for name in TERMS if name in losses), torch.zeros(()))
    torch.testing.assert_close(losses["loss"], others + 0.25 * found, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("depth", "looked_at"), [(28, 7), (12, 3), (6, 1), (3, 1), (1, 1)])
def test_the_dispersive_loss_looks_at_a_quarter_of_the_depth_where_nothing_is_said(depth: int, looked_at: int) -> None:
    assert DiT(depth=depth, dispersive_weight=0.5, repa="none").hidden_depth == looked_at
    assert DiT(depth=depth, repa="none").hidden_depth == 0

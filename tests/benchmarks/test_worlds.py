"""The made-up worlds: what a mistake is, what semantics tell, and that a row is trained, sampled and told."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import order
import pytest
import torch
from torch import Tensor

COUNT = 2000


def _nearest_code(world: order.World, latents: Tensor) -> Tensor:
    return torch.cdist(
        latents[:, order.TEXTURE : order.TEXTURE + order.CODE].flatten(1), world.codes.flatten(1)
    ).argmin(dim=1)


def _kind_of_first_part(world: order.World, latents: Tensor) -> Tensor:
    part = latents[:, : order.TEXTURE, 0, 0]
    return torch.cdist(part, world.drawings.flatten(0, 1)).argmin(dim=1) // order.DRAWINGS


@pytest.mark.parametrize("related", [True, False])
def test_images_of_a_world_are_of_unit_size_and_without_mistakes(related: bool) -> None:
    world = order.World.of(related)
    latents = world.draw(COUNT, seed=0)
    assert latents.shape == (COUNT, order.TEXTURE + order.CODE + order.SIGNS, order.SIDE, order.SIDE)
    assert latents.square().mean() == pytest.approx(1, abs=0.1)
    assert world.mistakes(latents) == 0


def test_parts_from_images_of_their_own_are_mistakes_as_often_as_their_kinds_differ() -> None:
    world = order.World.of(related=True)
    latents = world.draw(COUNT, seed=0)
    for row in range(order.SIDE):
        for column in range(order.SIDE):
            latents[:, :, row, column] = latents[torch.randperm(COUNT), :, row, column]
    assert world.mistakes(latents) == pytest.approx(1 - (1 / order.KINDS) ** (order.SIDE**2 - 1), abs=0.01)


def test_semantics_tell_the_kind_of_textures_where_they_are_related_and_nothing_where_not() -> None:
    for related, least, most in ((True, 0.9, 1.0), (False, 0.0, 0.1)):
        world = order.World.of(related)
        latents = world.draw(COUNT, seed=0)
        told = (_nearest_code(world, latents) == _kind_of_first_part(world, latents)).double().mean()
        assert least <= told <= most


def test_semantics_of_one_kind_are_no_near_duplicates() -> None:
    """Else the probe of `learn-schedule` would hold out whole kinds."""
    from sfd_cli.data.near_duplicates import near_duplicate_clusters

    semantic = order.World.of(related=True).draw(COUNT, seed=0)[:, order.TEXTURE :].flatten(1).double()
    clusters = near_duplicate_clusters((semantic - semantic.mean(dim=0)).numpy()[:, None])
    assert len(set(clusters.tolist())) > 0.98 * COUNT


@pytest.mark.benchmarks
def test_a_row_is_recorded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--worlds", "unrelated", "--laws", "synchronous", "--steps", "10", "--images", "200"]
    command = ["order.py", *options, "--training-images", "500", "--device", "cpu", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*command, "--keep", str(tmp_path / "kept")])
    order.main()
    assert {"latents", "probe", "schedule"} <= {path.name for path in (tmp_path / "kept" / "unrelated").iterdir()}
    found = json.loads((tmp_path / "order-cpu.json").read_text())
    (row,) = found["rows"]
    assert row["distance"] > 2 * row["distance of the data"], "ten steps teach it nothing"
    assert 0 <= row["mistakes"] <= 1
    assert row["mistakes of the data"] < 0.01
    assert set(found["learned"]) == {"unrelated"}
    assert "keep" not in found["settings"]
    monkeypatch.setattr(sys, "argv", command)
    order.main()
    assert json.loads((tmp_path / "order-cpu.json").read_text())["rows"] == [row]

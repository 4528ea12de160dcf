"""Images that come and go under `dvc repro`: the old stores are there when the stages run, and gone afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pipeline_project import TINY, Params, artifacts, create, run
from tiny_project import random_images

from sfd_cli.formats.model_folder import save_model
from sfd_cli.networks.semantic_vae import SemanticVAE, SemanticVAEConfig
from sfd_cli.networks.texture_vae import TextureVAE, TextureVAEConfig

COUNT = 20
OWN: Params = TINY | {
    "images": {"source": "folder", "folder": "../mine", "size": 32},
    "semvae": {**(TINY["semvae"] or {}), "weights": "../semvae"},
    "texture_vae": {**(TINY["texture_vae"] or {}), "weights": "../texture_vae"},
    "latents": {"shard_size": 8, "batch_size": 8, "noise": "content"},
}


@pytest.mark.slow
def test_dvc_repro_encodes_one_added_image_and_takes_over_the_rest(tmp_path: Path) -> None:
    torch.manual_seed(0)
    texture, semantic = TextureVAEConfig(4, (8,) * 4, norm_groups=4), SemanticVAEConfig(384, 4, 32, 1, 2)
    save_model(tmp_path / "texture_vae", "TextureVAE", texture, {"model": TextureVAE(texture).state_dict()}, {})
    save_model(tmp_path / "semvae", "SemanticVAE", semantic, {"model": SemanticVAE(semantic).state_dict()}, {})
    random_images(tmp_path / "mine", [f"{'bc'[number % 2]}/{number:02d}.png" for number in range(COUNT)], seed=0)
    project = create(tmp_path / "project", OWN)
    said = run(project, "dvc", "repro", "encode-latents")
    assert "taken over" not in said

    random_images(tmp_path / "mine", ["a/new.png"], seed=1)
    run(project, "dvc", "repro", "--force", "prepare-data")
    said = run(project, "dvc", "repro", "encode-latents")
    assert said.count(f"{COUNT} of {COUNT + 1} images are taken over from before, 1 are to be made") == 2
    assert {path.name for path in (project / "data").iterdir() if path.is_dir()} == {"images", "features", "latents"}

    nothing = create(tmp_path / "nothing", OWN)
    assert "taken over" not in run(nothing, "dvc", "repro", "encode-latents")
    made, expected = artifacts(project), artifacts(nothing)
    assert {name for name in expected if name.startswith("data/latents/shard")} != set()
    assert made == expected
    assert (project / "dvc.lock").read_bytes() == (nothing / "dvc.lock").read_bytes()

    (tmp_path / "mine" / "a" / "new.png").unlink()
    (tmp_path / "mine" / "b" / "00.png").rename(tmp_path / "mine" / "c" / "00.png")
    run(project, "dvc", "repro", "--force", "prepare-data")
    said = run(project, "dvc", "repro", "encode-latents")
    assert said.count(f"{COUNT} of {COUNT} images are taken over from before, 0 are to be made") == 2

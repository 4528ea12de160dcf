"""A whole project on principal components of pixel patches, one scale for all of them: from images to the page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refusal
from tiny_project import random_images

from sfd_cli import SemanticFirstPipeline
from sfd_cli.config import Settings
from sfd_cli.data.store import Store
from sfd_cli.formats.model_folder import load_config
from sfd_cli.networks.texture_pca import TexturePCA
from sfd_cli.report.curves import read_curves
from sfd_cli.stages import (
    encode_latents,
    extract_features,
    fid,
    prepare_data,
    report,
    sample,
    train,
    train_guide,
    train_semvae,
    train_texture_vae,
)

SECTIONS: dict[str, dict[str, Any]] = {
    "runtime": {"device": "cpu", "workers": 0},
    "images": {"source": "folder", "size": 16},
    "encoder": {"name": "dinov2_vits14", "weights": "random", "image_size": 28},
    "semvae": {"compressor": "pca", "channels": 3},
    "texture_vae": {"compressor": "pca", "patch_size": 8, "channels": 20},
    "latents": {"texture_scale": "stream"},
    "dit": {"width": 32, "depth": 2, "heads": 2, "repa_width": 32, "steps": 4, "batch_size": 8, "sample_every": 4},
    "guide": {"width": 16, "depth": 1, "heads": 1, "repa": "none", "steps": 2, "batch_size": 8, "sample_every": 0},
    "sample": {"steps": 4, "num_images": 6, "batch_size": 3, "guidance": "autoguidance"},
    "fid": {"inception": "none", "encoder": {"name": "dinov2_vits14", "weights": "random", "image_size": 28}},
    "report": {"grid_images": 4, "trajectory_images": 2},
}
STAGES = (
    prepare_data,
    extract_features,
    train_semvae,
    train_texture_vae,
    encode_latents,
    train,
    train_guide,
    sample,
    fid,
    report,
)
PLACES = ("images", "features", "semvae", "texture_vae", "latents", "dit", "guide", "samples", "metrics", "reports")


DECODER = {"decoder_channels": [8, 16], "norm_groups": 4, "steps": 5, "batch_size": 8, "log_every": 2}


@pytest.fixture(scope="module", params=["linear", "decoder"])
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings of a project after all stages, which is the working directory; decoded linearly, and by a network."""
    root = tmp_path_factory.mktemp("components")
    random_images(root / "mine", [f"{'ab'[index % 2]}/{index:02d}.png" for index in range(24)], seed=4)
    paths = {"paths": {name: root / name for name in PLACES}}
    images = {"images": SECTIONS["images"] | {"folder": root / "mine"}}
    texture = {"texture_vae": SECTIONS["texture_vae"] | (DECODER if request.param == "decoder" else {})}
    settings = Settings.model_validate(SECTIONS | paths | images | texture)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for stage in STAGES:
            stage.run(settings)
        yield settings


@pytest.fixture(scope="module")
def pipeline(project: Settings) -> SemanticFirstPipeline:
    return SemanticFirstPipeline.from_settings(project, device="cpu", encoder=True)


def test_every_stage_takes_them_and_the_page_names_them(project: Settings) -> None:
    paths = project.paths
    assert load_config(paths.texture_vae)["type"] == "TexturePCA"
    assert Store(paths.latents).fields["texture"].shape == (2, 20, 2, 2)
    assert load_config(paths.dit)["config"]["in_channels"] == 23
    assert len(list(paths.samples.glob("*.png"))) == 6
    assert np.isfinite(json.loads((paths.metrics / "fid.json").read_text())[f"fd_{project.fid.encoder.short_name}"])
    page = (paths.reports / "index.html").read_text()
    assert "Pixel components" in page
    curves = [curve.name for curve in read_curves(paths.metrics / "texture_vae")]
    assert bool(curves) == bool(project.texture_vae.decoder_channels)


def test_training_sampling_and_scores_inherit_the_one_scale(project: Settings, pipeline: SemanticFirstPipeline) -> None:
    statistics = load_config(project.paths.dit)["statistics"]
    stored = Store(project.paths.latents)
    assert np.array_equal(statistics["std"], stored.statistics["std"])
    assert len(set(statistics["std"][:20])) == 1
    assert len(set(statistics["std"][20:])) == 3
    textures = stored.read("texture", range(24)).astype(np.float64)
    deviations = textures - textures.mean(axis=(0, 1, 3, 4), keepdims=True)
    assert statistics["std"][0] == pytest.approx(np.sqrt(np.square(deviations).mean()), rel=1e-9)
    latents = pipeline.sample_latents([0, 1])
    raw = latents[:, :20] * statistics["std"][0] + torch.tensor(statistics["mean"][:20])[:, None, None]
    decoded = ((pipeline.texture_vae.decode(raw).clamp(-1, 1) + 1) * 127.5).round()
    assert (pipeline.decode(latents).float() - decoded).abs().max() <= 1


def test_images_come_back_from_their_latents(project: Settings, pipeline: SemanticFirstPipeline) -> None:
    assert isinstance(pipeline.texture_vae, TexturePCA)
    files = sorted((project.images.folder or Path()).rglob("*.png"))[:4]
    images = [Image.open(file) for file in files]
    latents = pipeline.encode(images)
    assert torch.equal(pipeline.encode(images, seed=1), latents) or (
        (pipeline.encode(images, seed=1) - latents).abs().max() < 1e-5
    )
    decoded = pipeline.decode(latents).permute(0, 2, 3, 1).numpy().astype(float)
    error = decoded - np.stack([np.asarray(image) for image in images])
    assert np.abs(error).mean() < 10


def test_a_saved_pipeline_makes_the_same_images(pipeline: SemanticFirstPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "saved")
    assert load_config(tmp_path / "saved" / "vae")["type"] == "TexturePCA"
    again = SemanticFirstPipeline.from_pretrained(tmp_path / "saved", device="cpu")
    assert torch.equal(again([0, 1, 1], output="uint8").images, pipeline([0, 1, 1], output="uint8").images)


def test_components_of_another_number_do_not_decode_these_latents(project: Settings, tmp_path: Path) -> None:
    fewer = project.texture_vae.model_copy(update={"channels": 5})
    paths = project.paths.model_copy(update={"texture_vae": tmp_path / "fewer", "metrics": tmp_path / "metrics"})
    other = project.model_copy(update={"texture_vae": fewer, "paths": paths})
    train_texture_vae.run(other)
    with refusal(project.paths.dit, tmp_path / "fewer", "sfd encode-latents"):
        sample.run(other)

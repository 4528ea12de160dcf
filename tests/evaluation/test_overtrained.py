"""A model that has learned a hundred images by heart is told by its samples, through the stages that users run."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfd_cli.config import load_settings
from sfd_cli.files import read_json
from sfd_cli.presets import preset_text
from sfd_cli.stages import (
    encode_latents,
    extract_features,
    memorisation,
    prepare_data,
    sample,
    train,
    train_semvae,
    train_texture_vae,
)

CHANGES = {
    "runtime": {"device": "cpu"},
    "images": {"limit": 100},
    "texture_vae": {"decoder_channels": []},
    "dit": {
        "width": 128,
        "depth": 4,
        "steps": 2000,
        "batch_size": 50,
        "learning_rate": 2e-3,
        "ema_decay": 0.99,
        "decay": 0.3,
        "compile": False,
        "precision": "fp32",
        "sample_every": 0,
    },
    "sample": {"guidance": "none", "num_images": 200},
}


@pytest.mark.slow
def test_a_model_over_trained_on_a_hundred_images_is_flagged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(preset_text("demo"))
    settings = load_settings(Path("params.yaml"), CHANGES)
    for stage in (prepare_data, extract_features, train_semvae, train_texture_vae, encode_latents, train, sample):
        stage.run(settings)
    found = memorisation.run(settings)
    assert found["memorised"], found
    assert found["median_distance"] < found["median_distance_of_real_images"]
    assert Path(found["picture"]).exists()
    assert read_json(Path(found["file"]))["closest"]

"""Every preset from images to report at a tiny scale: sizes are shrunk, every switch of the system is kept."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from artifact_records import RECORDS
from idx_files import write_training_set
from markupsafe import escape
from model_loading import load_dit
from pipeline_project import REPOSITORY, artifacts
from safetensors.torch import save_file
from tiny_project import random_images
from typer.testing import CliRunner

from sfd_cli.artifacts.learned_law import LAW
from sfd_cli.cli import app
from sfd_cli.config import Settings, load_settings
from sfd_cli.data.store import Store
from sfd_cli.diffusion.latents import LatentSpace
from sfd_cli.files import read_json
from sfd_cli.formats.ldm import texture_vae_to_ldm
from sfd_cli.formats.model_folder import load_config, save_model
from sfd_cli.laws import law_fact, law_of
from sfd_cli.networks.lightning_dit import LightningDiT
from sfd_cli.networks.semantic_vae import SemanticVAE, SemanticVAEConfig
from sfd_cli.networks.texture_vae import TextureVAE
from sfd_cli.presets import list_presets, use_preset
from sfd_cli.training import texture_vae_task, transformer

# The structurally most different ones; the others are left to `pytest -m systems`.
ALWAYS = {"demo", "redi-sfd", "imagenet512-xl", "dit-xl2"}
BRING_THEIR_IMAGES = {"demo", "fashion-mnist"}
IMAGES, SAMPLES = 20, 6
# These check or compute anew whenever they are run, and note the time.
NEVER_UP_TO_DATE = {"prepare-data", "fid", "report"}

Params = dict[str, Any]

VAE_TRAINING = {"steps": 2, "batch_size": 4, "warmup_steps": 1, "checkpoint_every": 1, "log_every": 1}
TRANSFORMER = {
    "width": 32,
    "depth": 2,
    "heads": 2,
    "repa_width": 32,
    "repa_depth": 1,
    "steps": 3,
    "batch_size": 4,
    # Fast enough for so few steps: averaged weights that are still the first ones would sample the noise itself.
    "learning_rate": 1e-2,
    "ema_decay": 0.5,
    "warmup_steps": 1,
    "checkpoint_every": 2,
    "log_every": 1,
}
SMALL: Params = {
    "semvae": {"width": 32, "depth": 1, "heads": 2, **VAE_TRAINING},
    "texture_vae": VAE_TRAINING,
    "latents": {"batch_size": 4, "shard_size": 8},
    "dit": {**TRANSFORMER, "sample_every": 3},
    "guide": {**TRANSFORMER, "depth": 1, "sample_every": 0},
    "schedule": {"levels": 3, "draws": 1},
    "sample": {"steps": 3, "num_images": SAMPLES, "batch_size": SAMPLES},
    "report": {"grid_images": 4, "trajectory_images": 2},
}


def shrunk(preset: Params) -> Params:
    """A preset with other sizes: a quarter of the pixels along each side, and small networks trained for moments."""
    small = {name: {**section, **SMALL.get(name, {})} if section else section for name, section in preset.items()}
    if "keep_every" in preset["dit"]:
        small["dit"]["keep_every"] = TRANSFORMER["steps"]
    if "probe" in small["schedule"]:
        small["schedule"]["probe"] = preset["schedule"]["probe"] | {**TRANSFORMER, "holdout": 0.4}
    small["images"] |= {"size": preset["images"]["size"] // 4}
    if preset["images"]["source"] != "folder":
        small["images"] |= {"size": preset["images"]["size"], "limit": IMAGES}
    if preset["encoder"]:
        small["encoder"] |= _small_encoder(preset["encoder"]["name"])
    if preset["features"]:
        small["features"] = {"batch_size": 4, "shard_size": 8}
    if "max_images" in preset["features"]:
        small["features"]["max_images"] = IMAGES // 2
    # As wide as its norms have groups at the finest level, then wider by the same steps.
    groups = preset["texture_vae"].get("norm_groups", 32)
    for key in ("block_channels", "decoder_channels"):
        if key in preset["texture_vae"]:
            finest, *_ = widths = preset["texture_vae"][key]
            small["texture_vae"][key] = [groups * width // finest for width in widths]
    small["fid"] |= {"inception": "none", "batch_size": 8, "encoder": _small_encoder("dinov2_vits14_reg")}
    return small


def _small_encoder(name: str) -> Params:
    registers = "_reg" if name.endswith("_reg") else ""
    return {"name": f"dinov2_vits14{registers}", "weights": "random", "image_size": 56}


def texture_weights(folder: Path, registered: str, settings: Settings) -> Path:
    """A random texture VAE of the settings' structure, in the format in which the registered one is published."""
    torch.manual_seed(0)
    network = TextureVAE(texture_vae_task.network_config(settings.texture_vae))
    if "f16d32" in registered:
        path = folder / f"{registered}.ckpt"
        torch.save({"state_dict": texture_vae_to_ldm(network.config, network.state_dict())}, path)
        return path
    path = folder / registered
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL", **network.autoencoder.config}))
    weights = {key: tensor.contiguous() for key, tensor in network.autoencoder.state_dict().items()}
    save_file(weights, path / "diffusion_pytorch_model.safetensors")
    return path


def semantic_weights(folder: Path, settings: Settings) -> Path:
    """A random Semantic VAE of the settings' size, in place of the published one."""
    section = settings.semvae
    config = SemanticVAEConfig(384, section.channels, section.width, section.depth, section.heads)
    save_model(folder / "published-semvae", "SemanticVAE", config, {"model": SemanticVAE(config).state_dict()}, {})
    return folder / "published-semvae"


def source_weights(folder: Path, settings: Settings, key: str) -> Path:
    """A random transformer of seven classes, of a section's architecture, in place of a published one."""
    section = getattr(settings, key)
    space = LatentSpace(settings.texture_vae.latent_channels, settings.semvae.channels, settings.grid)
    config = transformer.network_config(section, space, 384, 7)
    torch.manual_seed(1)
    statistics = {"mean": [0.1] * space.channels, "std": [0.9] * space.channels}
    save_model(folder, "LightningDiT", config, {"ema": LightningDiT(config).state_dict()}, {"statistics": statistics})
    return folder


def prepare(name: str, folder: Path) -> Settings:
    """Make `folder` a project that uses a preset, shrunk, as its user would."""
    params, own = folder / "params.yaml", folder / "own"
    random_images(own, [f"{'abcd'[index % 4]}/{index:02d}.png" for index in range(IMAGES)], seed=0)
    use_preset(name, params, None if name in BRING_THEIR_IMAGES else own)
    values = shrunk(yaml.safe_load(params.read_text()))
    if values["images"]["source"] == "fashion_mnist":
        write_training_set(folder / "idx", 2 * IMAGES)
        values["images"]["folder"] = "idx"
    if "reference" in values["fid"]:
        values["fid"]["reference"] = "reference.npz"
        side = values["images"]["size"]
        noise = np.random.default_rng(1).integers(0, 256, (IMAGES, side, side, 3), np.uint8)
        np.savez(folder / "reference.npz", arr_0=noise)
    params.write_text(yaml.safe_dump(values, sort_keys=False))
    settings = load_settings(params)
    if settings.semvae.weights is not None:
        values["semvae"]["weights"] = str(semantic_weights(folder, settings))
    for key in ("dit", "guide"):
        if values[key] is not None and "init" in values[key]:
            values[key]["init"] = str(source_weights(folder / f"published-{key}", settings, key))
    if settings.texture_vae.weights is not None:
        weights = texture_weights(folder, settings.texture_vae.weights, settings)
        values["texture_vae"]["weights"] = str(weights)
        params.write_text(yaml.safe_dump(values, sort_keys=False))
    return load_settings(params)


def run_stages() -> dict[str, str]:
    """Run the commands of dvc.yaml in its order, in this process; what each printed."""
    said = {}
    for stage, description in yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"].items():
        _, *arguments = shlex.split(description["cmd"])
        result = CliRunner().invoke(app, [*arguments, "--debug"])
        assert result.exit_code == 0, f"{stage}: {result.output[-3000:]} {result.exception!r}"
        said[stage] = result.output
    return said


@dataclass(frozen=True)
class Expected:
    """What the structure of a preset promises of its latents, shrunk."""

    texture: tuple[int, int, int]
    semantic: tuple[int, int, int] | None
    features: int | None = None
    flips: int = 2


FOLDED_WITH_COMPONENTS = Expected((16, 4, 4), (8, 4, 4))
PAPERS = Expected((32, 4, 4), (16, 4, 4))
EXPECTED = {
    "demo": Expected((96, 4, 4), (8, 4, 4), features=16, flips=1),
    "dit-xl2": Expected((4, 8, 8), None),
    "finetune-sfd-xl": PAPERS,
    "fashion-mnist": Expected((48, 4, 4), (8, 4, 4), features=16, flips=1),
    "imagenet256-1p0b": PAPERS,
    "imagenet256-b": PAPERS,
    "imagenet256-guide-b": PAPERS,
    "imagenet256-l": PAPERS,
    "imagenet256-s": PAPERS,
    "imagenet256-xl": PAPERS,
    "imagenet256-xl-learned": PAPERS,
    "imagenet512-xl": Expected((32, 8, 8), (16, 8, 8)),
    "lightningdit-xl1": Expected((32, 4, 4), None),
    "lightningdit-xl1-repa": PAPERS,
    "redi": FOLDED_WITH_COMPONENTS,
    "redi-sfd": FOLDED_WITH_COMPONENTS,
    "vavae-sfd": PAPERS,
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.systems) for name in list_presets()]
)
def test_a_preset_runs_from_images_to_report_and_then_has_nothing_to_do(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = prepare(name, tmp_path)
    run_stages()
    check_latents(EXPECTED[name], Store(tmp_path / "data" / "latents"))
    check_transformers(settings, EXPECTED[name], tmp_path / "models")
    check_results(settings, tmp_path)

    made, times = artifacts(tmp_path), timings(tmp_path)
    run_stages()
    assert artifacts(tmp_path) == made
    assert timings(tmp_path) == times


def check_latents(expected: Expected, store: Store) -> None:
    shapes = {name: field.shape for name, field in store.fields.items()}
    promised: dict[str, tuple[int, ...]] = {"texture": (expected.flips, *expected.texture)}
    if expected.semantic is not None:
        promised["semantic"] = (expected.flips, *expected.semantic)
    if expected.features is not None:
        promised["features"] = (expected.flips, expected.features, 384)
    assert shapes == promised
    assert len(store) == IMAGES
    assert len(store.statistics["std"]) == sum(shape[1] for name, shape in promised.items() if name != "features")
    assert np.isfinite(store.statistics["std"]).all()


def check_transformers(settings: Settings, expected: Expected, models: Path) -> None:
    network, about = load_dit(models / "dit")
    section, config = settings.dit, network.config
    for switch in ("patch_size", "qk_norm", "swiglu", "rope", "rms_norm", "time_embedding", "mlp_ratio"):
        assert getattr(config, switch) == getattr(section, switch), switch
    semantic = expected.semantic[0] if expected.semantic is not None and section.semantics else 0
    assert (config.semantic_channels, config.in_channels) == (semantic, expected.texture[0] + semantic)
    assert config.grid == expected.texture[-1]
    assert (config.repa_depth > 0) == (section.repa != "none")
    assert config.feature_width == (384 if section.repa != "none" else 0)
    if section.init is not None:
        assert about["statistics"] == load_dit(Path(section.init))[1]["statistics"]
    law = read_json(models / "schedule" / LAW) if settings.schedule.learn else law_of(section)
    assert law_fact(law).items() <= about.items()
    if settings.guide is None:
        assert sorted(path.name for path in (models / "guide").iterdir()) == RECORDS
    else:
        guide, about_guide = load_dit(models / "guide")
        assert guide.config.in_channels == config.in_channels
        assert law_fact(law).items() <= about_guide.items()
    compressor = {"vae": "SemanticVAE", "pca": "SemanticPCA", "none": None}[settings.semvae.compressor]
    if compressor is None:
        assert not (models / "semvae" / "config.json").exists()
    else:
        assert load_config(models / "semvae")["type"] == compressor


def check_results(settings: Settings, folder: Path) -> None:
    side = settings.images.size
    with np.load(folder / "data" / "samples" / "samples.npz") as archive:
        assert archive["arr_0"].shape == (SAMPLES, side, side, 3)
        assert archive["arr_0"].dtype == np.uint8
    scores = json.loads((folder / "metrics" / "fid.json").read_text())
    assert math.isfinite(scores[f"fd_{settings.fid.encoder.short_name}"])
    reports = folder / "reports"
    page = (reports / "index.html").read_text()
    pictures = 2 + settings.schedule.learn  # the samples, their way from noise, and what a schedule was learned from
    assert page.count("data:image/png;base64,") == pictures
    assert str(escape(settings.report.title)) in page
    assert "None steps" not in page
    assert ("semantic latent" in page.split('<section id="settings">')[0]) == settings.dit.semantics
    assert (folder / "metrics" / "dit" / "samples" / "step-0000003.png").exists()


def timings(folder: Path) -> dict[str, str]:
    """What the stages that know when they have nothing to do noted about their runs."""
    files = sorted((folder / "metrics" / "timings").glob("*.json"))
    return {path.stem: path.read_text() for path in files if path.stem not in NEVER_UP_TO_DATE}


def test_shrinking_a_preset_changes_its_sizes_and_nothing_else() -> None:
    sizes = {key for section in SMALL.values() for key in section} | {
        "size",
        "limit",
        "keep_every",
        "image_size",
        "block_channels",
        "decoder_channels",
    }
    others = {"shard_size", "max_images", "encoder", "inception", "probe"}  # of features, the scores and the schedule
    for name in list_presets():
        preset = yaml.safe_load((REPOSITORY / "sfd_cli" / "presets" / f"{name}.yaml").read_text())
        small = shrunk(preset)
        assert small.keys() == preset.keys()
        for section, values in small.items():
            before = preset[section] or {}
            changed = {key for key, value in (values or {}).items() if before.get(key, "") != value}
            assert changed <= sizes | others | ({"name", "weights"} if section == "encoder" else set()), (name, section)

"""Projects for studies: one whose stages are a script that takes no time, and one that trains, samples and scores."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tiny_project import CLASSES, SEMANTIC, SIDE, TEXTURE, tiny_settings, write_training_images

from sfd_cli.config import Settings
from sfd_cli.data.shards import StoreWriter
from sfd_cli.data.store import Field
from sfd_cli.files import write_json
from sfd_cli.formats.model_folder import save_model
from sfd_cli.networks.semantic_vae import SemanticVAE, SemanticVAEConfig
from sfd_cli.networks.texture_vae import TextureVAE, TextureVAEConfig

# Notes that it was called, finds a law by the probe's lead, synchronous for 0, and scores 100 + 10 x seed + offset +
# steps of sampling.
SCRIPT = """
import json, pathlib, sys, time, yaml
stage, params = sys.argv[1], pathlib.Path(sys.argv[-1])
values = yaml.safe_load(params.read_text())
dit = values.get("dit", {})
with open("calls.txt", "a") as file:
    file.write(f"{stage} {dit.get('delta_t', 0.3)} {dit.get('seed', 0)}\\n")
if stage == "learn-schedule":
    folder = pathlib.Path(values["paths"]["schedule"])
    folder.mkdir(parents=True)
    lead = values.get("schedule", {}).get("probe", {}).get("lead", 0)
    law = {"schedule": "curve", "lead": lead, "lead_slope": -1.5} if lead else {"schedule": "offset", "delta_t": 0.0}
    (folder / "law.json").write_text(json.dumps(law))
    (folder / "settings.json").write_text(json.dumps({"fingerprint": "learned", "complete": True}))
    if values.get("schedule", {}).get("learn"):
        import numpy
        errors, kinds = numpy.random.default_rng(0), ("", "_control", "_trained_on")
        arrays = {s + kind: errors.random((8, 5, 5)) for kind in kinds for s in ("texture", "semantic")}
        arrays |= {"clusters" + kind: numpy.arange(8) for kind in kinds}
        numpy.savez(folder / "surface.npz", levels=numpy.linspace(-4, 2, 5), semantic_end=0.5, **arrays)
        metrics = pathlib.Path(values["paths"]["metrics"])
        gaps = {"gap": -1.0, "standard_error": 2.0, "related_gap": 0.5, "related_error": 1.0, "synchronous": 250.0}
        held = {f"{which}_{stream}": 0.5 for which in ("validation", "training") for stream in ("texture", "semantic")}
        for name, found in (
            ("learn_schedule", {"lead": lead, "is_clear": False, "interpolation": 0.25} | gaps),
            ("probe", {"loss": 1.0} | held),
        ):
            (metrics / name).mkdir(parents=True)
            (metrics / name / "metrics.json").write_text(json.dumps(found))
if stage == "oracle":
    folder = pathlib.Path(values["paths"]["metrics"]) / "schedule"
    folder.mkdir(parents=True)
    oracle = {"images": values.get("sample", {}).get("num_images", 900), "real_semantics": 70 + dit.get("lead", 0)}
    oracle |= {"sampled_semantics": 72.0, "gain": 2.0, "gain_standard_error": 0.5}
    level = {"lead": -0.25, "lead_standard_error": 0.5}
    found = {"images": 8, "levels": {"0.5": level}, "accuracy": None, "oracle": oracle}
    (folder / "inspect.json").write_text(json.dumps(found))
if stage == "train" and dit.get("steps") == 13:
    print("sfd: error: dit.steps: cannot count to 13; take another number")
    sys.exit(1)
if stage == "train" and dit.get("steps") == 600:
    time.sleep(600)
if stage == "train":
    pathlib.Path(values["paths"]["dit"]).mkdir(parents=True, exist_ok=True)
seen = values.get("fid", {}).get("encoder", {})
NAME = f"{seen.get('name', 'dinov2_vits14')}_{seen.get('image_size', 112)}"
NAME += "_random" if seen.get("weights") == "random" else ""
if stage == "fid":
    score = 100 + 10 * dit.get("seed", 0) + dit.get("delta_t", 0.3) + values.get("sample", {}).get("steps", 24)
    folder = pathlib.Path(values["paths"]["metrics"])
    folder.mkdir(parents=True)
    (folder / "fid.json").write_text(json.dumps({"fd_" + NAME: score, "fd_" + NAME + "_se": 0.5, "kid_" + NAME: None}))
"""
QUICK: dict[str, Any] = {
    "prepare-data": {"params": ["images"], "outs": [{"data/images": {"persist": True}}]},
    "train": {"deps": ["data/images"], "params": ["dit"], "outs": ["models/dit"]},
    "sample": {"deps": ["models/dit"], "params": ["sample"], "outs": ["data/samples"]},
    "fid": {"deps": ["data/samples"], "params": ["fid"], "metrics": [{"metrics/fid.json": {"cache": False}}]},
    "report": {"deps": ["metrics/fid.json"], "cmd": "make page", "outs": ["reports"]},
}
STUDY: dict[str, Any] = {
    "title": "An offset",
    "question": "Does an offset help?",
    "dataset": "dots",
    "set": {"sample.steps": 4, "dit": {"steps": 20}},
    "vary": {"none": {"dit.delta_t": 0.0}, "some": {"dit.delta_t": 0.25}, "much": {"dit.delta_t": 1.0}},
    "seeds": [0, 1],
}


def quick_project(folder: Path, **study: Any) -> Path:
    """Stages that take no time, defaults for settings, and the study `offset` with these keys over STUDY."""
    stages = {name: quick(folder, name) | stage for name, stage in QUICK.items()}
    write_pipeline(folder, stages)
    write_study(folder, **study)
    return folder


def quick(folder: Path, name: str) -> dict[str, Any]:
    """The command of a stage that takes no time."""
    (folder / "quick.py").write_text(SCRIPT)
    return {"cmd": f"{sys.executable} quick.py {name} sfd_cli"}


def calls() -> list[str]:
    """Stages that ran since this was asked last, with offset and seed."""
    path = Path("calls.txt")
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def write_pipeline(folder: Path, stages: dict[str, Any]) -> None:
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))


def write_study(folder: Path, name: str = "offset", **study: Any) -> Path:
    path = folder / "studies" / name / "study.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(STUDY | study, sort_keys=False))
    return path


def real_project(folder: Path, **study: Any) -> Settings:
    """Images, latents and VAEs, random; the stages from training to scores; params.yaml, and the study `offset`.

    Artifacts lie right in the folder. Returns the settings.
    """
    images = study.pop("images", 20)
    dit = {"width": 16, "depth": 2, "heads": 2, "repa_width": 8, "batch_size": 8, "log_every": 5, "sample_every": 0}
    sections: dict[str, Any] = {
        "dit": dit | {"checkpoint_every": 10, "precision": "fp32", "delta_t": 0.0},
        "sample": {"num_images": 12, "steps": 2, "solver": "euler", "batch_size": 12},
        "fid": {"scores": ["fd"], "baselines": False},
    }
    settings = tiny_settings(folder, **sections)
    values = settings.model_dump(mode="json", exclude_defaults=True, exclude={"paths"}) | {"guide": None}
    values["paths"] = {name: name for name in ("images", "semvae", "texture_vae", "latents")}
    write_training_images(settings)
    write_latents(settings.paths.latents, images)
    torch.manual_seed(0)
    semantic = SemanticVAEConfig(6, SEMANTIC, width=8, depth=1, heads=2)
    save_model(settings.paths.semvae, "SemanticVAE", semantic, {"model": SemanticVAE(semantic).state_dict()}, {})
    texture = TextureVAEConfig(TEXTURE, (32, 32, 32, 32))
    save_model(settings.paths.texture_vae, "TextureVAE", texture, {"model": TextureVAE(texture).state_dict()}, {})
    for model in (settings.paths.semvae, settings.paths.texture_vae):
        write_json(model / "settings.json", {"fingerprint": model.name, "complete": True})
    (folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    stages = {
        "train": {"cmd": "sfd train", "deps": ["latents"], "params": ["dit"], "outs": ["models/dit"]},
        "sample": {"cmd": "sfd sample", "deps": ["models/dit"], "params": ["sample"], "outs": ["data/samples"]},
        "fid": {"cmd": "sfd fid", "deps": ["data/samples"], "params": ["fid"], "metrics": ["metrics/fid.json"]},
    }
    write_pipeline(folder, stages)
    write_study(folder, **study)
    return settings


def write_latents(folder: Path, count: int = 20) -> None:
    shapes = {"texture": (2, TEXTURE, 2, 2), "semantic": (2, SEMANTIC, 2, 2), "features": (2, 4, 6)}
    rng = np.random.default_rng(0)
    writer = StoreWriter(
        folder, {n: Field(s) for n, s in shapes.items()}, count, count, "latents", {"image_size": SIDE}
    )
    writer.write_shard(0, {n: rng.normal(1, 3, (count, *s)).astype(np.float16) for n, s in shapes.items()})
    channels = TEXTURE + SEMANTIC
    statistics = {"mean": np.full(channels, 1.0), "std": np.full(channels, 3.0)}
    labels = [index % 3 for index in range(count)]
    writer.finish(labels, [f"{index}.png" for index in range(count)], range(count), CLASSES, statistics)
    record = {"fingerprint": "latents", "complete": True, "settings": {}, "inputs": {}}
    write_json(folder / "settings.json", record)

"""Settings by which every stage of the tiny project has work to do, the learning of a schedule too, and damage."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml
from pipeline_project import TINY

Changes = dict[str, Any]
"""Settings by their dotted keys."""

# The project's own settings, but that a schedule is learned: its probe is trained in a stage like any other.
PROBE: Changes = {key: TINY["dit"][key] for key in ("width", "depth", "heads", "batch_size")}  # type: ignore[index]
LEARNING: Changes = {
    "schedule.learn": True,
    "schedule.levels": 3,
    "schedule.probe": PROBE | {"steps": 2, "holdout": 0.2, "checkpoint_every": 10, "log_every": 1},
}
SECTIONS = {
    "prepare-data": "images",
    "extract-features": "features",
    "train-semvae": "semvae",
    "train-texture-vae": "texture_vae",
    "encode-latents": "latents",
    "learn-schedule": "schedule",
    "train": "dit",
    "train-guide": "guide",
    "sample": "sample",
    "fid": "fid",
    "report": "report",
}


def settings_file(path: Path, changes: Changes) -> Path:
    values: dict[str, Any] = copy.deepcopy(dict(TINY))
    for key, value in copy.deepcopy(LEARNING | changes).items():
        *sections, last = key.split(".")
        section = values
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = value
    path.write_text(yaml.safe_dump(values))
    return path


def flip(path: Path) -> None:
    """Sixty-four other bytes in the middle of a file."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(byte ^ 255 for byte in content[middle : middle + 64])
    path.write_bytes(content)

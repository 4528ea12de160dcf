"""A tiny but real project: the dvc.yaml of `sfd init` over settings that run in seconds, in a git repository."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from sfd_cli.project import start_project

REPOSITORY = Path(__file__).parents[1]

Params = dict[str, dict[str, Any] | None]

TINY: Params = {
    "images": {"size": 32, "limit": 48},
    "encoder": {"name": "dinov2_vits14", "weights": "random", "image_size": 56},
    "features": {"shard_size": 16},
    "semvae": {
        "compressor": "vae",
        "channels": 4,
        "width": 32,
        "depth": 1,
        "heads": 2,
        "steps": 6,
        "batch_size": 8,
        "log_every": 2,
    },
    "texture_vae": {
        "channels": 4,
        "block_channels": [8, 8, 8, 8],
        "norm_groups": 4,
        "steps": 6,
        "batch_size": 8,
        "log_every": 2,
    },
    "latents": {"shard_size": 8, "batch_size": 8},
    "dit": {
        "width": 32,
        "depth": 2,
        "heads": 2,
        "repa_width": 32,
        "steps": 12,
        "batch_size": 8,
        "checkpoint_every": 4,
        "log_every": 2,
        "sample_every": 0,
    },
    "guide": {
        "width": 16,
        "depth": 1,
        "heads": 1,
        "repa": "none",
        "steps": 4,
        "batch_size": 8,
        "log_every": 2,
        "sample_every": 0,
    },
    "schedule": {},
    "sample": {"delta_t": 0.3, "steps": 4, "num_images": 12, "batch_size": 6, "guidance": "autoguidance"},
    "fid": {"inception": "none", "encoder": {"name": "dinov2_vits14", "weights": "random", "image_size": 56}},
    "report": {"grid_images": 9, "trajectory_images": 2},
}

# The same without semantics, and without a guide.
PLAIN: Params = TINY | {
    "encoder": {},
    "features": {},
    "semvae": {"compressor": "none"},
    "latents": {"shard_size": 8, "batch_size": 8, "store_features": False},
    "dit": {
        **(TINY["dit"] or {}),
        "semantics": False,
        "time_embedding": "single",
        "delta_t": 0.0,
        "repa": "none",
        "steps": 4,
    },
    "guide": None,
    "sample": {"delta_t": 0.0, "steps": 2, "num_images": 6, "batch_size": 6, "guidance": "cfg"},
}


def environment(**changes: str) -> dict[str, str]:
    """The test's environment with this interpreter's `sfd` and `dvc` first, one thread, no network."""
    here = str(Path(sys.executable).parent)
    return os.environ | {
        "PATH": here + os.pathsep + os.environ["PATH"],
        "OMP_NUM_THREADS": "1",
        "DVC_NO_ANALYTICS": "1",
        "GIT_AUTHOR_NAME": "test",
        "GIT_AUTHOR_EMAIL": "test@example.org",
        "GIT_COMMITTER_NAME": "test",
        "GIT_COMMITTER_EMAIL": "test@example.org",
        **changes,
    }


def create(folder: Path, params: Params = TINY) -> Path:
    """A committed project in `folder`, as `sfd init` makes one, with a DVC cache of its own."""
    start_project(folder, "demo")
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    run(folder, "git", "add", "--all")
    run(folder, "git", "commit", "--quiet", "--message", "A tiny project")
    return folder


def run(folder: Path, *command: str, **changes: str) -> str:
    """Output of a command in the project; a failure shows all it printed."""
    done = subprocess.run(
        command, cwd=folder, env=environment(**changes), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-4000:]}"
    return done.stdout


def artifacts(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that the stages made and that must not depend on how often they were interrupted."""
    found = {}
    for place in ("data", "models", "metrics/fid.json", "metrics/semvae.json", "metrics/texture_vae.json"):
        path = folder / place
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file() and not file.name.endswith((".lock", ".seen.json")) and file.name != ".gitignore":
                found[str(file.relative_to(folder))] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found

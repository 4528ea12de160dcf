"""All stages on a device that PyTorch knows from elsewhere alone: one that computes on the CPU and refuses what devices
refuse (tests/devices/stand_in.cpp). Its results are the CPU's.

Compiling it takes a C++ compiler and half a minute.
"""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pipeline_project import TINY
from safetensors.torch import load_file
from stand_in import NAME, build

from sfd_cli.files import read_json

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")]
STAGES = (
    "prepare-data",
    "extract-features",
    "train-semvae",
    "train-texture-vae",
    "encode-latents",
    "learn-schedule",
    "train",
    "train-guide",
    "sample",
    "fid",
    "memorisation",
    "report",
)
# What computes in float64 on the device: validation, weights of the corrected objective, progress by bisection.
DIT = {"holdout": 0.2, "objective": "corrected", "lead_jitter": 0.2, "sample_every": 6}

SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
library, *stages = sys.argv[1:]
device = "cpu"
if library:
    from stand_in import NAME, load
    load(Path(library))
    device = NAME
from command_line import done
for stage in stages:
    done(stage, "--device", device)
    print(stage, flush=True)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("stand_in"))


def run(folder: Path, library: Path | None, **environment: str) -> Path:
    """All stages in a process of their own, in a folder that is made."""
    folder.mkdir()
    values: dict[str, Any] = copy.deepcopy(dict(TINY))
    values["dit"] |= DIT
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), str(here.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    changes = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-c", SCRIPT, str(library or ""), *STAGES]
    ended = subprocess.run(command, cwd=folder, env=os.environ | changes, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("cpu") / "project", None)


@pytest.mark.parametrize("float64", ["1", "0"], ids=["with float64", "without float64"])
def test_all_stages_give_on_the_stand_in_what_they_give_on_the_cpu(
    float64: str, library: Path, on_cpu: Path, tmp_path: Path
) -> None:
    project = run(tmp_path / "project", library, STAND_IN_FLOAT64=float64)
    for name in ("semvae", "texture_vae", "dit", "guide"):
        for file in sorted((on_cpu / "models" / name).glob("*.safetensors")):
            expected, found = load_file(file), load_file(project / "models" / name / file.name)
            assert expected.keys() == found.keys()
            for key, tensor in expected.items():
                torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=1e-4, msg=f"{name} {key}")
    scores, wanted = (read_json(folder / "metrics" / "fid.json") for folder in (project, on_cpu))
    for key, value in wanted.items():
        if isinstance(value, float):
            assert scores[key] == pytest.approx(value, rel=0.02), key
    made = read_json(project / "data" / "samples" / "settings.json")["settings"]
    assert made["device"] == f"{NAME}: made of a CPU"

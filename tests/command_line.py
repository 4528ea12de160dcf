"""The `sfd` command in this process, and the files of the reference code that people give it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from reference_files import part
from typer.testing import CliRunner

from sfd_cli.cli import app
from sfd_cli.errors import UserError
from sfd_cli.formats.ldm import texture_vae_to_ldm
from sfd_cli.networks.texture_vae import TextureVAE, TextureVAEConfig


def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder and an empty cache beside it."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("SFD_CACHE", "TORCH_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    return folder


@dataclass(frozen=True)
class Ran:
    """What a command left: exit code, standard output and standard error, and the error behind a refusal."""

    code: int
    out: str
    err: str
    error: BaseException | None = None


def sfd(*arguments: Any) -> Ran:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    cause = result.exception.__cause__ if result.exception is not None else None
    return Ran(result.exit_code, result.stdout, result.stderr, cause)


def done(*arguments: Any) -> Ran:
    """The command, which must succeed."""
    ran = sfd(*arguments)
    assert ran.code == 0, ran.err
    return ran


def refusal_of(*arguments: Any) -> UserError:
    """The error behind a refused command; it must print one sentence, write nothing and show no traceback."""
    before = files_below(Path.cwd())
    ran = sfd(*arguments)
    assert (ran.code, ran.out) == (2, ""), ran
    assert isinstance(ran.error, UserError)
    assert ran.err == f"sfd: error: {ran.error}\n"
    assert files_below(Path.cwd()) == before
    return ran.error


def files_below(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, hidden ones too, by its path; of folders only that they are there."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


def training_checkpoint(path: Path, name: str = "sfd", which: str = "model") -> Path:
    """A fixture's transformer as the reference's trainer saves it, with a settings object among the rest."""
    weights = part(f"dit_{name}", f"{which}.")
    last = {key: value + 1 if key.startswith("blocks.") else value for key, value in weights.items()}
    settings = OmegaConf.create({"model": {"depth": 3}})
    torch.save({"model": last, "ema": weights, "opt": {"state": {0: torch.ones(3)}}, "config": settings}, path)
    return path


def ema_checkpoint(path: Path, name: str = "sfd", which: str = "model") -> Path:
    """A fixture's transformer as it is published."""
    torch.save({"ema": part(f"dit_{name}", f"{which}.")}, path)
    return path


def ldm_checkpoint(path: Path, channels: int = 8) -> Path:
    """A random LDM autoencoder whose images have twice the side of its latents."""
    config = TextureVAEConfig(channels, (32, 32))
    torch.manual_seed(0)
    torch.save({"state_dict": texture_vae_to_ldm(config, TextureVAE(config).state_dict()), "epoch": 3}, path)
    return path


def statistics(path: Path, channels: int, mean: float = 0.1) -> Path:
    torch.save({"mean": torch.full((1, channels, 1, 1), mean), "std": torch.full((1, channels, 1, 1), 0.9)}, path)
    return path

"""What identifies the artifacts that a stage reads."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from sfd_cli.config import Settings
from sfd_cli.errors import UserError
from sfd_cli.files import fingerprint, read_json, sha256_file
from sfd_cli.stages.output import SETTINGS
from sfd_cli.weights.model_files import load_config
from sfd_cli.weights.sources import foreign_fingerprint, is_foreign, locate, weights_digest


def upstream_fingerprint(folder: Path, made_by: str) -> str:
    """Fingerprint of a complete artifact that another stage wrote.

    Raises:
        UserError: it is not there or not complete; names the command that makes it.
    """
    record = Path(folder) / SETTINGS
    if not record.exists():
        raise UserError(f"{folder} does not hold the output of `{made_by}`; run that first")
    found = read_json(record)
    if not found.get("complete"):
        raise UserError(f"{folder} is unfinished; run `{made_by}` again to complete it")
    return str(found["fingerprint"])


def model_fingerprint(source: Path, made_by: str, weights: str = "model") -> str:
    """Of a model's own bytes: more training changes them while its settings stay the same.

    A folder without `settings.json`, such as an imported model, or a file of other code will do.

    Raises:
        UserError: there is no whole model with these weights; names the command that makes it.
    """
    folder = locate(source)
    if is_foreign(folder):
        return weights_digest(folder)
    if (folder / SETTINGS).exists():
        upstream_fingerprint(folder, made_by)
    description, path = load_config(folder), folder / f"{weights}.safetensors"
    if not path.exists():
        present = ", ".join(file.stem for file in sorted(folder.glob("*.safetensors"))) or "none"
        raise UserError(
            f"{path} does not exist (weights present: {present}); run `{made_by}` to make it, or choose with --weights"
        )
    return fingerprint({"description": description, "weights": sha256_file(path)})


def dit_fingerprint(settings: Settings, which: Literal["dit", "guide"]) -> str:
    """`model_fingerprint` of a transformer, and of what was told about one of the reference code."""
    source, made_by = getattr(settings.paths, which), {"dit": "sfd train", "guide": "sfd train --model guide"}[which]
    if is_foreign(locate(source)):
        return foreign_fingerprint(settings, which)
    return model_fingerprint(source, made_by, settings.sample.weights)


def source_digest(key: str, source: str) -> str:
    """SHA-256 of the weights that the setting `key` names: a file, a folder, or registered weights.

    Raises:
        UserError: there are none, or they cannot be fetched.
    """
    path = locate(source)
    if not path.exists():
        raise UserError(f"{key}: {source} is no file, no folder and no name in `sfd weights list`")
    return weights_digest(path)

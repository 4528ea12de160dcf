"""What identifies the artifacts that a stage reads."""

from __future__ import annotations

from pathlib import Path

from sfd_cli.errors import UserError
from sfd_cli.files import fingerprint, read_json, sha256_file
from sfd_cli.stages.output import SETTINGS
from sfd_cli.weights.model_files import load_config


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


def model_fingerprint(folder: Path, made_by: str, weights: str = "model") -> str:
    """Of a model's own bytes: more training changes them while its settings stay the same.

    A folder without `settings.json`, such as an imported model, will do.

    Raises:
        UserError: there is no whole model with these weights; names the command that makes it.
    """
    folder = Path(folder)
    if (folder / SETTINGS).exists():
        upstream_fingerprint(folder, made_by)
    description, path = load_config(folder), folder / f"{weights}.safetensors"
    if not path.exists():
        raise UserError(f"{path} does not exist; run `{made_by}` to make it")
    return fingerprint({"description": description, "weights": sha256_file(path)})

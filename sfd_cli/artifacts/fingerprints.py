"""What identifies the artifacts that a stage reads."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Literal

from sfd_cli.artifacts.output import SETTINGS
from sfd_cli.config import Settings
from sfd_cli.errors import UserError
from sfd_cli.files import fingerprint, read_json, sha256_file
from sfd_cli.formats.model_folder import CONFIG, load_config
from sfd_cli.formats.reference_latents import is_shards
from sfd_cli.weights.models import is_foreign, locate, read_foreign_dit
from sfd_cli.weights.registry import Kind

KIND_OF: dict[str, Kind] = {
    "texture_vae.weights": "vae",
    "semvae.weights": "semvae",
    "dit.init": "dit",
    "guide.init": "dit",
}
"""What registered weights must be, by the setting that names them."""


def upstream_fingerprint(folder: Path, made_by: str) -> str:
    """Fingerprint of a complete artifact that another stage wrote.

    Raises:
        UserError: it is not there or not complete; names the command that makes it.
    """
    record = Path(folder) / SETTINGS
    if is_shards(Path(folder)):
        raise UserError(
            f"{folder} holds latent shards of the reference code; `sfd weights import` makes a store of them"
        )
    if not record.exists():
        raise UserError(f"{folder} does not hold the output of `{made_by}`; run that first")
    found = read_json(record)
    if not found.get("complete"):
        raise UserError(f"{folder} is unfinished; run `{made_by}` again to complete it")
    return str(found["fingerprint"])


def model_fingerprint(source: Path, made_by: str, weights: str = "model", kind: Kind | None = None) -> str:
    """Of a model's own bytes: more training changes them while its settings stay the same.

    A folder without `settings.json`, such as an imported model, or a file of other code will do, or the name of
    registered weights of this kind.

    Raises:
        UserError: there is no whole model with these weights; names the command that makes it.
    """
    folder = locate(source, *([kind] if kind else []))
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
    """`model_fingerprint` of a transformer; of one of the reference code with what was told about it."""
    source, made_by = getattr(settings.paths, which), {"dit": "sfd train", "guide": "sfd train --model guide"}[which]
    path = locate(source, "dit")
    if not is_foreign(path):
        return model_fingerprint(source, made_by, settings.sample.weights)
    found, statistics = read_foreign_dit(settings, which)
    told = {"config": asdict(found.config), "statistics": {name: asdict(part) for name, part in statistics.items()}}
    return fingerprint({"weights": weights_digest(path), **told})


def semvae_fingerprint(settings: Settings) -> str:
    """`model_fingerprint` of the semantic compressor; of a foreign one with how its tokens attend to each other."""
    source = settings.paths.semvae
    if not is_foreign(locate(source, "semvae")):
        return model_fingerprint(source, "sfd train-semvae")
    told = {"heads": settings.semvae.heads, "tiles": settings.encoder.tiles}
    return fingerprint({"weights": weights_digest(locate(source)), **told})


def texture_vae_fingerprint(source: Path, space_to_depth: int) -> str:
    """`model_fingerprint` of the texture VAE; of a foreign one with how its latent is folded."""
    if not is_foreign(locate(source, "vae")):
        return model_fingerprint(source, "sfd train-texture-vae")
    return fingerprint({"weights": weights_digest(locate(source)), "space_to_depth": space_to_depth})


def source_digest(key: str, source: str) -> str:
    """SHA-256 of the weights that the setting `key` names: a file, a folder, or registered weights.

    Raises:
        UserError: there are none, of another kind, or they cannot be fetched.
    """
    path = locate(source, KIND_OF[key])
    if not path.exists():
        raise UserError(f"{key}: {source} is no file, no folder and no name in `sfd weights list`")
    return weights_digest(path)


def weights_digest(path: Path) -> str:
    """SHA-256 of a weights file; of a folder, of its weights and the configuration that they are read by."""
    files = [path] if path.is_file() else sorted([*path.glob("*.safetensors"), *path.glob(CONFIG)])
    return " ".join(_digest(file, file.stat().st_size, file.stat().st_mtime_ns) for file in files)


@cache
def _digest(path: Path, size: int, modified: int) -> str:
    """Of a file as it is now: gigabytes are hashed once in a run."""
    return sha256_file(path)

"""Fingerprints of the artifacts that a stage reads, which must be finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sfd_cli.artifacts.damage import damage
from sfd_cli.artifacts.recipe import Record
from sfd_cli.checksums import damaged, damaged_by_own
from sfd_cli.distributed.processes import Processes
from sfd_cli.errors import UserError
from sfd_cli.formats.reference_shards import is_shards
from sfd_cli.weights.models import Model


def finished(folder: Path, made_by: str) -> Record:
    """The record of a complete artifact that another stage wrote.

    Raises:
        UserError: it is not there, not complete, or damaged; names the command that makes it.
    """
    if is_shards(Path(folder)):
        problem = "holds latent shards of the reference code"
        raise UserError(folder, problem, "`sfd weights import` makes a store of them")
    record = Record.read(folder)
    if record is None:
        raise UserError(folder, f"does not hold the output of `{made_by}`", "run that first")
    if not record.complete:
        raise UserError(folder, "is unfinished", f"run `{made_by}` again to complete it")
    # Of several processes one looks, the others end with it.
    if Processes.join().is_main and (wrong := damaged(Path(folder), record.files)):
        raise damage(Path(folder), wrong, f"run `{made_by}`, which makes again what can be")
    return record


def finished_model(model: Model[Any], made_by: str) -> str:
    """Fingerprint of a model that a stage must have completed, if a stage made it; a milestone is complete by itself.

    Raises:
        UserError: it is unfinished or damaged, or there are no such weights.
    """
    if Record.read(model.folder) is not None:
        finished(model.folder, made_by)
    elif Processes.join().is_main and (wrong := damaged_by_own(model.folder)):
        raise damage(model.folder, wrong, "take another milestone")
    return model.fingerprint

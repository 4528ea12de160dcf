"""`sfd weights export`: our artifacts as files of the reference code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sfd_cli.data.store import INDEX
from sfd_cli.errors import UserError
from sfd_cli.formats.adapter_folder import is_adapter
from sfd_cli.formats.files import export_model, export_parts
from sfd_cli.formats.format import ModelParts
from sfd_cli.formats.reference_latents import export_latents
from sfd_cli.networks.lightning_dit import LightningDiT
from sfd_cli.weights.models import open_model


def export_anything(source: Path, target: Path) -> dict[str, Any]:
    """One of our model folders as the reference's file, or a latent store as the reference's shards.

    An adapter is merged with its base.

    Returns:
        The summary to print.

    Raises:
        UserError: it is neither, or `target` exists.
    """
    if source.is_file():
        raise UserError(source, "is a file", "give the model folder or latent store to export")
    if (source / INDEX).exists():
        return {"shards": export_latents(source, target), "folder": str(target)}
    if is_adapter(source):
        kind = LightningDiT.__name__
        file, *beside = export_parts(source, kind, target, lambda _: _merged(source))
    else:
        kind, (file, *beside) = export_model(source, target)
    statistics = {"statistics": " and ".join(map(str, beside))} if beside else {}
    return {"kind": kind, "file": str(file), **statistics}


def _merged(source: Path) -> ModelParts:
    model = open_model(source, LightningDiT)
    return ModelParts(LightningDiT.__name__, model.config, {"ema": model.load().state_dict()}, model.facts)

"""`sfd weights export`: our artifacts as files of the reference code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sfd_cli.data.store import INDEX
from sfd_cli.errors import UserError
from sfd_cli.formats.files import export_model
from sfd_cli.formats.reference_latents import export_latents


def export_anything(source: Path, target: Path) -> dict[str, Any]:
    """One of our model folders as the reference's file, or a latent store as the reference's shards.

    Returns:
        The summary to print.

    Raises:
        UserError: it is neither, or `target` exists.
    """
    if source.is_file():
        raise UserError(source, "is a file", "give the model folder or latent store to export")
    if (source / INDEX).exists():
        return {"shards": export_latents(source, target), "folder": str(target)}
    kind, (file, *beside) = export_model(source, target)
    statistics = {"statistics": " and ".join(map(str, beside))} if beside else {}
    return {"kind": kind, "file": str(file), **statistics}

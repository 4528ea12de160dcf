"""`sfd init`: a new project, from nothing to `dvc repro`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfd_cli.cli.app import app
from sfd_cli.cli.terminal import friendly_errors
from sfd_cli.project import start_project


@app.command("init", rich_help_panel="4. Weights and settings")
@friendly_errors
def init(
    folder: Annotated[Path, typer.Argument(help="made if it is not there")] = Path(),
    preset: Annotated[str, typer.Option(help="a name from `sfd preset list`")] = "demo",
    images: Annotated[
        Path | None, typer.Option(help="images of your own: a folder, or a zip, tar or Parquet file")
    ] = None,
) -> None:
    """Start a project: git and DVC where they are not, dvc.yaml, params.yaml, .gitignore; overwrites nothing."""
    for line in start_project(folder, preset, images):
        typer.echo(line)

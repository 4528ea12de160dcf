"""The typer app that the commands register with."""

from __future__ import annotations

from typing import Annotated

import typer

from sfd_cli import __version__
from sfd_cli.cli.stages import StageGroup

app = typer.Typer(
    name="sfd",
    cls=StageGroup,
    help="Train, sample and score [bold]Semantic-First Diffusion[/bold] (arXiv 2512.04926).\n\n"
    "Each command is a stage of the pipeline that `dvc repro` runs; each also runs alone. Settings come from"
    " params.yaml in the working folder, and flags override them. `sfd init` makes a folder with all it takes.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"sfd {__version__}")
        raise typer.Exit


@app.callback()
def sfd(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and leave")
    ] = False,
) -> None:
    """Train, sample and score Semantic-First Diffusion."""

"""`sfd preset`: every system of the paper as a ready params.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfd_cli.cli.app import app
from sfd_cli.cli.terminal import friendly_errors
from sfd_cli.config import DEFAULT_PARAMS
from sfd_cli.presets import list_presets, preset_text, use_preset

preset_app = typer.Typer(help="Ready settings: every system of the paper, and the demo.", no_args_is_help=True)
app.add_typer(preset_app, name="preset", rich_help_panel="4. Weights and settings")

_NAME = Annotated[str, typer.Argument(help="a name from `sfd preset list`")]


@preset_app.command("list")
@friendly_errors
def preset_list() -> None:
    """List the presets with the first line of what each says about itself."""
    presets = list_presets()
    width = max(map(len, presets))
    for name, summary in presets.items():
        typer.echo(f"{name:<{width}}  {summary}")


@preset_app.command("show")
@friendly_errors
def preset_show(name: _NAME) -> None:
    """Print a preset as it would be written to params.yaml."""
    typer.echo(preset_text(name), nl=False)


@preset_app.command("use")
@friendly_errors
def preset_use(
    name: _NAME,
    images: Annotated[Path | None, typer.Option(help="images of your own, written into images.folder")] = None,
    params: Annotated[Path, typer.Option(help="the file to write")] = DEFAULT_PARAMS,
) -> None:
    """Write a preset to params.yaml; settings of your own that stood there are kept under another name."""
    for line in use_preset(name, params, images):
        typer.echo(line)

"""`sfd weights`: published weights and foreign checkpoints."""

from __future__ import annotations

from typing import Annotated

import typer

from sfd_cli.cli.app import app
from sfd_cli.cli.terminal import friendly_errors

weights_app = typer.Typer(help="Published weights: what there is, and fetching it.", no_args_is_help=True)
app.add_typer(weights_app, name="weights", rich_help_panel="4. Weights and settings")


@weights_app.command("list")
@friendly_errors
def weights_list() -> None:
    """List the named weights: licence, size where it is known, what for."""
    from sfd_cli.weights.registry import REGISTRY

    for entry in REGISTRY.values():
        size = f"{entry.size / 1e6:,.0f} MB" if entry.size else ""
        typer.echo(f"{entry.name:<28} {entry.licence:<14} {size:>8}  {entry.purpose}")


@weights_app.command("fetch")
@friendly_errors
def weights_fetch(name: Annotated[str, typer.Argument(help="a name from `sfd weights list`")]) -> None:
    """Fetch named weights into the cache, resuming and verifying, and print where they are."""
    from sfd_cli.weights.fetch import fetch

    typer.echo(fetch(name))

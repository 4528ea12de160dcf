"""`sfd verify`: whether what the stages left is still what they wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfd_cli.cli.app import app
from sfd_cli.cli.options import PARAMS
from sfd_cli.cli.terminal import friendly_errors
from sfd_cli.config import DEFAULT_PARAMS, load_settings
from sfd_cli.errors import StageFailure
from sfd_cli.messages import printable


@app.command("verify", rich_help_panel="3. Images and scores")
@friendly_errors
def verify_artifacts(
    artifacts: Annotated[
        list[Path] | None, typer.Argument(help="folders that stages have made; none: all of params.yaml that are here")
    ] = None,
    params: PARAMS = DEFAULT_PARAMS,
) -> None:
    """Read every byte of artifacts and compare them with their checksums; a line for each, exit code 1 on damage.

    Stages look at sizes and times only, and read what has changed. What is found here they know of: `sfd` STAGE makes
    damaged shards and images again, and reports damaged models.
    """
    from sfd_cli.artifacts.recipe import SETTINGS
    from sfd_cli.artifacts.verification import verify

    chosen = artifacts
    if not chosen:
        settings = load_settings(params)
        places = settings.paths.model_dump(exclude={"metrics", "reports"}).values()
        chosen = [place for place in places if (place / SETTINGS).exists()]
    damaged = []
    width = max((len(printable(folder)) for folder in chosen), default=0)
    for folder in chosen:
        told, is_damaged = verify(folder)
        typer.echo(printable(f"{folder!s:<{width}}  {told}"))
        damaged += [str(folder)] if is_damaged else []
    if damaged:
        problem = f"{len(damaged)} of {len(chosen)} artifacts are damaged"
        raise StageFailure(", ".join(damaged), problem, "run the stages that made them, or bring them back")
    if not chosen:
        typer.echo("no artifacts are here yet")

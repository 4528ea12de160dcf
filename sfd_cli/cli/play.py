"""`sfd play`: a trained model in the browser."""

from __future__ import annotations

from typing import Annotated

import typer

from sfd_cli.cli.app import app
from sfd_cli.cli.options import DEBUG, PARAMS
from sfd_cli.cli.terminal import friendly_errors
from sfd_cli.config import DEFAULT_PARAMS
from sfd_cli.errors import UserError


@app.command("play", rich_help_panel="3. Images and scores")
@friendly_errors
def play(
    model: Annotated[
        str | None,
        typer.Argument(
            help="a saved pipeline, or a transformer: a folder, a file of the reference code, a name from"
            " `sfd weights list`; unset: the project's own",
            show_default=False,
        ),
    ] = None,
    texture_vae: Annotated[str | None, typer.Option(help="decodes its latents; unset: paths.texture_vae")] = None,
    guide: Annotated[str | None, typer.Option(help="the weaker model, for autoguidance")] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, npu, xpu, mps, cuda:N; unset: runtime.device")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="of the page, on this machine; unset: a free one from 7860")
    ] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="open a browser on the page")] = True,
    params: PARAMS = DEFAULT_PARAMS,
    debug: DEBUG = False,
) -> None:
    """See pictures form in the browser, and redraw the textures or the semantics of one, or a part of it.

    A page for this machine alone, with `pip install "sfd-cli[play]"`.
    """
    from sfd_cli.config import load_settings
    from sfd_cli.play.serve import free_port, require_gradio, serve

    require_gradio()
    place = free_port(port)
    if params != DEFAULT_PARAMS and not params.exists():
        raise UserError("--params", f"{params} does not exist", "check the path")
    settings = load_settings(params, {"runtime": {"device": device}} if device else {})
    from sfd_cli.play.opening import Sources, open_studio

    serve(open_studio(settings, Sources(model, texture_vae, guide)), place, browser)

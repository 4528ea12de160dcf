"""The page on a port of this machine, and a browser on it."""

from __future__ import annotations

import importlib.util
import socket
import threading
import webbrowser
from typing import Any

from sfd_cli.errors import UserError
from sfd_cli.messages import say
from sfd_cli.play.studio import Studio

HOST = "127.0.0.1"
PORT = 7860
PORTS = 40
"""How many ports are tried, from PORT on, where none is asked for."""


def require_gradio() -> None:
    """Raise UserError where Gradio is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError("sfd play", "needs gradio, which is not installed", 'pip install "sfd-cli[play]"')


def free_port(port: int | None) -> int:
    """`port` if nobody listens there; if none is asked for, the first free one from PORT on.

    Raises:
        UserError: it is taken, or cannot be had.
    """
    for candidate in (port,) if port is not None else range(PORT, PORT + PORTS):
        with socket.socket() as probe:
            # As servers do: a port on which connections of an earlier one linger is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, candidate))
            except OSError as error:
                why = error.strerror
                continue
            return candidate
    if port is None:
        raise UserError("--port", f"none from {PORT} to {PORT + PORTS - 1} is free", "name another")
    raise UserError("--port", f"{port} cannot be used ({why})", "give another, or none")


def start(studio: Studio, port: int) -> tuple[Any, str]:
    """Serve the page to this machine only; the server and the page's address.

    Raises:
        UserError: the port was taken meanwhile.
    """
    from sfd_cli.play.page import CSS, build, theme

    page = build(studio)
    try:
        _, url, _ = page.queue(api_open=False).launch(
            server_name=HOST,
            server_port=port,
            share=False,
            inbrowser=False,
            prevent_thread_lock=True,
            quiet=True,
            show_error=True,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            theme=theme(),
            css=CSS,
        )
    except OSError:
        raise UserError("--port", f"{port} is taken", "give another, or none") from None
    return page, url


def serve(studio: Studio, port: int, browser: bool) -> None:
    """Serve the page until the person at the terminal ends it.

    Raises:
        UserError: the port was taken meanwhile.
    """
    page, url = start(studio, port)
    say(f"the page is at {url}, for this machine alone; Ctrl-C ends it")
    if browser and not webbrowser.open(url):
        say("no browser could be opened here; open that address in one")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        say("ended")
    finally:
        page.close(verbose=False)

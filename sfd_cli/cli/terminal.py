"""What every command does at the terminal: errors in one sentence, results as aligned lines."""

from __future__ import annotations

import errno
import functools
import os
import signal
import traceback
import types
import typing
from collections.abc import Callable
from typing import Any

import typer

from sfd_cli.errors import StageFailure, UserError

# A path that cannot be read or written as asked; like any mistake, the user's to change.
UNUSABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}


def _fail(message: str, code: int, cause: BaseException) -> typing.NoReturn:
    typer.secho(f"sfd: error: {message}", fg="red", err=True)
    raise SystemExit(code) from cause


def _terminate(signum: int, _frame: types.FrameType | None) -> None:
    raise SystemExit(128 + signum)


def friendly_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn exceptions into one sentence and an exit code (2 the user's, 1 ours); `--debug` shows the traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, debug: bool = False, **kwargs: Any) -> Any:
        debug = debug or bool(os.environ.get("SFD_DEBUG"))
        signal.signal(signal.SIGTERM, _terminate)
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt as interrupt:
            _fail("interrupted; run the same command to go on", 128 + signal.SIGINT, interrupt)
        except Exception as error:
            if debug:
                traceback.print_exc()
            if isinstance(error, UserError):
                _fail(str(error), 2, error)
            if isinstance(error, StageFailure):
                _fail(str(error), 1, error)
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                _fail(f"the disk is full ({error}); free some space and run the same command to go on", 1, error)
            if isinstance(error, OSError) and error.errno in UNUSABLE:
                _fail(
                    f"{error.filename} cannot be used ({error.strerror}); give another path or see to this one",
                    2,
                    error,
                )
            _fail(f"{type(error).__name__}: {' '.join(str(error).split())} (SFD_DEBUG=1 shows the traceback)", 1, error)

    return wrapped


def print_result(result: dict[str, Any], indent: str = "") -> None:
    """A stage's summary as aligned lines; only the first process of a torchrun prints."""
    if int(os.environ.get("RANK", "0")):
        return
    width = max((len(str(key)) for key in result), default=0)
    for key, value in result.items():
        if isinstance(value, dict):
            typer.echo(f"{indent}{key}")
            print_result(value, indent + "  ")
        else:
            shown = f"{value:.6g}" if isinstance(value, float) else value
            typer.echo(f"{indent}{key:<{width}}  {shown}")

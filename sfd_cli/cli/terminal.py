"""What every command does at the terminal: errors in one sentence, results as aligned lines."""

from __future__ import annotations

import errno
import functools
import os
import signal
import socket
import time
import traceback
import types
from collections.abc import Callable
from typing import Any

import typer

from sfd_cli.distributed.watch import AGAIN, WATCH
from sfd_cli.errors import SfdError, StageFailure, UserError
from sfd_cli.memory import is_out_of_memory, out_of_memory
from sfd_cli.messages import printable

# A path that cannot be read or written: the user's to change.
UNUSABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}
# There is no room: on the disk, in the user's quota, or in a file.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Characters of an error that are shown: it may quote names from a file, which are as long as the file likes.
LONGEST = 2000
PATIENCE = 15
"""Seconds that other processes than the first wait with their sentence: what all have to say is said once, for as soon
as the first one has said it and is gone, the others are ended."""


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
            if _is_another_process():  # of which each is told, and the first one says so
                raise SystemExit(128 + signal.SIGINT) from interrupt
            raise _ended(128 + signal.SIGINT, "interrupted; run the same command to go on") from interrupt
        except Exception as error:
            if debug:
                traceback.print_exc()
            found = _with_fields(error)
            sentence = str(found)
            if _is_another_process():
                time.sleep(PATIENCE)
                sentence = f"process {os.environ['RANK']} ({socket.gethostname()}): {sentence}"
            WATCH.end()  # with its work undone, so that it is missed
            raise _ended(2 if isinstance(found, UserError) else 1, sentence) from found

    return wrapped


def _is_another_process() -> bool:
    """Whether another process than this one speaks for all of a torchrun."""
    return bool(int(os.environ.get("RANK", "0")))


def _with_fields(error: Exception) -> SfdError:
    """The error itself, or what an error of the system or a mistake of ours means to a person at the terminal."""
    if isinstance(error, SfdError):
        return error
    if is_out_of_memory(error):
        return out_of_memory(error, "sfd")
    if isinstance(error, RuntimeError) and (gone := WATCH.absent()):
        problem = f"ended, or cannot be reached any more ({' '.join(str(error).split('. ')[0].split())})"
        return StageFailure(f"process {gone}", problem, AGAIN)
    if _is_about_room(error):
        place = error.filename if isinstance(error, OSError) else None
        remedy = "free some space and run the same command to go on"
        return StageFailure(place or "the disk", f"is full ({' '.join(str(error).split())})", remedy)
    if isinstance(error, OSError) and error.errno in UNUSABLE:
        return UserError(error.filename, f"cannot be used ({error.strerror})", "give another path, or repair this one")
    return StageFailure(type(error).__name__, " ".join(str(error).split()), "SFD_DEBUG=1 shows the traceback")


def _is_about_room(error: Exception) -> bool:
    """Whether there was no room for what was written; safetensors and HDF5 say that in their text alone."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL
    return any(os.strerror(number) in str(error) for number in FULL)


def _ended(code: int, sentence: str) -> SystemExit:
    shown = printable(sentence)
    if len(shown) > LONGEST:
        shown = f"{shown[: LONGEST // 2]} ... {shown[-LONGEST // 2 :]}"
    typer.secho(f"sfd: error: {shown}", fg="red", err=True)
    return SystemExit(code)


def print_result(result: dict[str, Any], indent: str = "") -> None:
    """A stage's summary as aligned lines; only the first process of a torchrun prints."""
    if _is_another_process():
        return
    shown = {printable(key): value for key, value in result.items()}
    width = max(map(len, shown), default=0)
    for key, value in shown.items():
        if isinstance(value, dict):
            typer.echo(f"{indent}{key}")
            print_result(value, indent + "  ")
        else:
            text = f"{value:.6g}" if isinstance(value, float) else printable(value)
            typer.echo(f"{indent}{key:<{width}}  {text}")

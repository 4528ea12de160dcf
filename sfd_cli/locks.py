"""Locks of files, for programs that take turns, also on file systems that have none."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import IO, Any

from sfd_cli.messages import say

NONE_HERE = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
"""What a file system without locks answers, as Lustre does without `-o flock`, and NFS without its lock service."""

_told: set[str] = set()


def take(file: IO[Any], wait: bool = True) -> bool:
    """Take the lock of an open file, which is given back when the file is closed or this process ends.

    Where the file system has no locks, a line says so, once for a folder, and the work goes on as if it were taken.

    Args:
        file: open for writing.
        wait: until another process gives it back.

    Returns:
        Whether it is taken; False where another process has it and it is not waited for.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NONE_HERE:
            raise
        folder = os.path.dirname(file.name) or "."
        if folder not in _told:
            _told.add(folder)
            why = f"no locks on this file system ({error.strerror})"
            say(f"{folder}: {why}; see that no two commands write there at once")
    return True

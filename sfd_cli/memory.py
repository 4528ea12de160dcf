"""Memory that runs out: how PyTorch, NumPy and the system say so, and what a person is told."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from sfd_cli.errors import StageFailure

# PyTorch's allocators on a CPU and on devices that raise no error of their own kind, and NVIDIA's libraries.
SAID = ("can't allocate memory", "not enough memory", "out of memory", "_ALLOC_FAILED")
REMEDY = "use smaller batches, a smaller model, or a device with more memory"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device's or the machine's memory is full."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError):  # PyTorch's own kind of error is one too; nothing here has to import it
        return type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in SAID)
    return isinstance(error, MemoryError)


def out_of_memory(error: BaseException, subject: str, remedy: str = "") -> StageFailure:
    """What an error that says so means to a person: `subject` is what ran, `remedy` what to change, else what helps."""
    said = str(error)
    whose = "machine" if isinstance(error, MemoryError | OSError) or "CPUAllocator" in said else "device"
    size = re.search(r"allocate ([\d.]+ \w+)", said)
    problem = f"ran out of the {whose}'s memory" + (f", at another {size[1]}" if size else "")
    return StageFailure(subject, problem, remedy or REMEDY)


@contextmanager
def memory_told(subject: str, remedy: str = "") -> Iterator[None]:
    """A block in which memory that runs out is an error for people, see `out_of_memory`.

    Raises:
        StageFailure: memory ran out.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(error, subject, remedy) from error

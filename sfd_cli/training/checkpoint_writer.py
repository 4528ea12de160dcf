"""Checkpoints written beside training: the loop stands still while the state is copied, not while it is written."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from sfd_cli.training.checkpoints import Checkpoints, TrainingState

LARGE = 256 * 2**20
"""Bytes of a state from which on it is written in a thread: less is on the disk before the next steps are done."""


class CheckpointWriter:
    """A block in which checkpoints are written, one at a time; when it ends all are on the disk.

    What a write has failed with is raised by the next call, or at the end of the block.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def save(self, state: TrainingState) -> None:
        """Have a state written, in a thread where it is large; until then it is copied, and may change afterwards.

        Raises:
            StageFailure: a weight is not finite; nothing is written.
            Exception: what the write before has failed with.
        """
        self.wait()
        if sum(tensor.nbytes for tensor in state.tensors) < LARGE:
            self._checkpoints.save(state)
            return
        self._checkpoints.require_finite(state)
        self._writing = self._thread.submit(self._checkpoints.write, state.on_host())

    def wait(self) -> None:
        """Until nothing is being written.

        Raises:
            Exception: what the write has failed with.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown()  # waits
        if error is None:
            self.wait()

"""Batches dealt to the processes of a torchrun, and what is computed of them gathered in the first one, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from torch import Tensor

from sfd_cli.distributed.processes import Processes
from sfd_cli.errors import StageFailure
from sfd_cli.evaluation.images import ImageSource
from sfd_cli.progress import progress

T = TypeVar("T")


def gathered(own: Iterator[T], rounds: int, processes: Processes) -> Iterator[T]:
    """What the processes give of pieces of work that they take in turn, in the order of the pieces.

    It is the first process's, others get nothing. All must call this alike and take all that it gives.

    Args:
        own: what this process gives of its pieces, see `in_turn`; it is sent from process to process, so it must be
            picklable.
        rounds: how often every process is asked for its next one, at least as often as the first one has pieces.
        processes: that share the work.

    Raises:
        Whatever `own` raises in any of the processes: once, in the first one.
    """
    for _ in range(rounds):
        yield from (one for one in processes.gather(lambda: next(own, None)) if one is not None)


def in_turn(pieces: Sequence[T], processes: Processes) -> Sequence[T]:
    """Those of `pieces` that are this process's: every one in turn."""
    return pieces[processes.rank :: processes.count]


def rounds_of(pieces: int, processes: Processes) -> int:
    """How many pieces the first process has, which has no fewer than the others."""
    return -(-pieces // processes.count)


def computed(
    images: ImageSource, what: str, size: int, compute: Callable[[Tensor, int], T], processes: Processes
) -> Iterator[T]:
    """What `compute` gives of every batch, in their order; in the first process, and nothing in the others.

    The processes take batches in turn. A batch has the same images whoever takes it, so that results do not depend on
    how many they are, and no process holds more than one batch that the first one has not fetched. All must call this
    alike, and take all that it gives.

    Args:
        images: where they come from.
        what: what they are, for the progress bar and for messages.
        size: images of a batch.
        compute: from a batch, uint8 (n, 3, H, W), and the number of images up to its end; what it gives is sent from
            process to process, so it must be picklable.
        processes: that share the work.

    Raises:
        StageFailure: the number of images is not what was announced.
        Whatever `images` and `compute` raise in any of the processes: once, in the first one.
    """
    count = images.count
    starts = range(0, count, size)
    share: Sequence[int] = range(count)
    if processes.count > 1:
        mine = in_turn(starts, processes)
        share = [index for start in mine for index in range(start, min(start + size, count))]
        images = images.at(share)

    def results() -> Iterator[T]:
        seen = 0
        for batch in images.batches(size):
            seen += len(batch)
            if seen > len(share):
                break
            yield compute(batch, share[seen - 1] + 1)
        if seen != len(share):
            raise StageFailure(what, f"expected {len(share)} images but read {seen}", "no score is computed")

    with progress(doing=f"features of {what}", total=len(starts), unit="batch", silent=not processes.is_main) as bar:
        # Once more than there are batches: an archive is only known to be whole at its end.
        for found in gathered(results(), rounds_of(len(starts), processes) + 1, processes):
            bar.update()
            yield found

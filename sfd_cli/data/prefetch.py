"""Work ahead in threads, a bounded way, while the consumer is busy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from sfd_cli.devices import here_too

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetched(items: Iterable[Item], depth: int) -> Generator[Item, None, None]:
    """The same items in the same order, up to `depth` of them made in advance by one thread.

    The thread works on the devices that are current where the first item is taken, not on the first of each kind.
    What the iterable raises is raised here, at its place. Closing early waits for the item in the making.
    """
    iterator, end = iter(items), object()
    pool = ThreadPoolExecutor(1, "prefetch", here_too())
    try:
        pending: deque[Any] = deque(pool.submit(next, iterator, end) for _ in range(depth))
        while (item := pending.popleft().result()) is not end:
            pending.append(pool.submit(next, iterator, end))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)


def threaded_map(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int, ahead: int = 64
) -> Generator[Result, None, None]:
    """`work` of every item, in order, by `workers` threads, at most `ahead` results waiting to be fetched.

    Unlike `Executor.map` it takes millions of items without a task for each, and closing it drops what is waiting.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="map")
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)

"""Reading, hashing and writing beside the work: a few threads, since these let go of the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

THREADS = max(2, min(4, os.cpu_count() or 1))
"""A constant number of items in work bounds the memory."""


def ahead(jobs: Iterable[Callable[[], R]]) -> Generator[R, None, None]:
    """Yields the results of jobs in order, with the next one already at work: two results exist at a time.

    Args:
        jobs: What to do; each is started when the one before it is asked for.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = None
        for job in jobs:
            started = pool.submit(job)
            if waiting is not None:
                yield waiting.result()
            waiting = started
        if waiting is not None:
            yield waiting.result()


def together(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Does something with several items, a few at a time; gives the results in order."""
    with ThreadPoolExecutor(max_workers=THREADS) as pool:
        return list(pool.map(work, items))

"""Reads, hashes, decodes and writes in a few background threads; all four release the interpreter's lock."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from itertools import repeat
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from lwfed import cpus

T = TypeVar("T")
R = TypeVar("R")

Jobs = SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]

GRACE_S = 1.0
"""Seconds to wait for threads at the end of `in_groups`."""


def num_threads() -> int:
    """Returns how many items of `parallel_map` are in work at a time: 2 to 4, which bounds the memory."""
    return max(2, min(4, cpus.usable()))


def prefetch(jobs: Iterable[Callable[[], R]]) -> Generator[R, None, None]:
    """Yields the results of jobs in order while the next job already runs: two results exist at a time.

    Args:
        jobs: The jobs; each starts when the caller asks for the result of the one before.
    """
    requests: SimpleQueue[Callable[[], R] | None] = SimpleQueue()
    answers: SimpleQueue[Future[R]] = SimpleQueue()
    thread = Thread(target=_answer, args=(requests, answers), name="prefetch", daemon=True)
    thread.start()
    try:
        waiting = False
        for job in jobs:
            requests.put(job)
            if waiting:
                yield answers.get().result()
            waiting = True
        if waiting:
            yield answers.get().result()
    finally:
        requests.put(None)
        thread.join()


def _answer(requests: SimpleQueue[Callable[[], R] | None], answers: SimpleQueue[Future[R]]) -> None:
    for job in iter(requests.get, None):
        answer: Future[R] = Future()
        _do(answer, job)
        answers.put(answer)
        del answer, job  # while this thread waits, only the caller holds the result


def taken_ahead(items: Generator[R, None, None]) -> Generator[R, None, None]:
    """Yields items in order while a background thread already makes the next one: two exist at a time.

    When it is closed, or ends, so are the items.
    """
    end = object()
    with closing(items), closing(prefetch(repeat(lambda: next(items, end)))) as found:
        for item in found:
            if item is end:
                return
            yield item  # type: ignore[misc]  # of any type but that of the end


def parallel_map(work: Callable[[T], R], items: Iterable[T], *, threads: int | None = None) -> list[R]:
    """Applies a function to items, `threads` or a few at a time; returns the results in order."""
    listed = list(items)
    if len(listed) < 2 or threads == 1:
        return [work(item) for item in listed]
    with ThreadPoolExecutor(threads or num_threads()) as pool:
        return list(pool.map(work, listed))


def in_groups(
    work: Callable[[T], R], groups: Iterable[Sequence[T]], *, threads: int, ahead: int
) -> Generator[list[Future[R]], None, None]:
    """Begins work on groups of items, in order, and yields each group's results, which may not be there yet.

    The threads are daemons: one that never ends, such as a read from a dead file server, does not keep the process from
    exiting, as one of a ThreadPoolExecutor would.

    Args:
        work: Is applied to each item.
        groups: The groups.
        threads: Number of items in work at a time.
        ahead: Number of further groups to begin before the caller asks for them.
    """
    jobs: Jobs = SimpleQueue()
    pool = [Thread(target=_work, args=(jobs,), name=f"read-{n}", daemon=True) for n in range(threads)]
    begun: deque[list[Future[R]]] = deque()
    try:
        for thread in pool:
            thread.start()
        for group in groups:
            begun.append([_begin(jobs, partial(work, item)) for item in group])
            if len(begun) > ahead:
                yield begun.popleft()
        while begun:
            yield begun.popleft()
    finally:
        with suppress(Empty):
            while True:
                jobs.get_nowait()
        for _ in pool:
            jobs.put(None)
        ends_at = time.monotonic() + GRACE_S
        for thread in pool:
            if thread.ident is not None:
                thread.join(max(0.0, ends_at - time.monotonic()))


def _begin(jobs: Jobs, job: Callable[[], R]) -> Future[R]:
    future: Future[R] = Future()
    jobs.put((future, job))
    return future


def _work(jobs: Jobs) -> None:
    for future, job in iter(jobs.get, None):
        _do(future, job)
        del future, job  # while this thread waits, only the caller holds the result


def _do(future: Future[R], job: Callable[[], R]) -> None:
    try:
        future.set_result(job())
    except BaseException as error:  # raised when the caller asks for the result
        future.set_exception(error)

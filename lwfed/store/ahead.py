"""Reads, hashes and writes in a few background threads; all three release the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

THREADS = max(2, min(4, os.cpu_count() or 1))
"""Items in work at a time; a fixed number bounds the memory."""


def prefetch(jobs: Iterable[Callable[[], R]]) -> Generator[R, None, None]:
    """Yields the results of jobs in order while the next job already runs: two results exist at a time.

    It uses a plain thread: a process forked by a thread of a pool would wait for that thread at exit, and fail.

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
        try:
            answer.set_result(job())
        except BaseException as error:  # raised when the caller asks for the result
            answer.set_exception(error)
        answers.put(answer)
        del answer, job  # while this thread waits, only the caller holds the result


def parallel_map(work: Callable[[T], R], items: Iterable[T], *, threads: int = THREADS) -> list[R]:
    """Applies a function to items, a few at a time; returns the results in order."""
    listed = list(items)
    if len(listed) < 2:
        return [work(item) for item in listed]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, listed))

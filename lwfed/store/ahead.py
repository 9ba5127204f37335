"""Reading, hashing and writing beside the work: a few threads, since these let go of the interpreter's lock."""

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
"""A constant number of items in work bounds the memory."""


def ahead(jobs: Iterable[Callable[[], R]]) -> Generator[R, None, None]:
    """Yields the results of jobs in order, with the next one already at work: two results exist at a time.

    The thread is a plain one: a process that a pool's thread forks waits for that thread at its end, and fails.

    Args:
        jobs: What to do; each is started when the one before it is asked for.
    """
    asked: SimpleQueue[Callable[[], R] | None] = SimpleQueue()
    answers: SimpleQueue[Future[R]] = SimpleQueue()
    thread = Thread(target=_answer, args=(asked, answers), name="ahead", daemon=True)
    thread.start()
    try:
        waiting = False
        for job in jobs:
            asked.put(job)
            if waiting:
                yield answers.get().result()
            waiting = True
        if waiting:
            yield answers.get().result()
    finally:
        asked.put(None)
        thread.join()


def _answer(asked: SimpleQueue[Callable[[], R] | None], answers: SimpleQueue[Future[R]]) -> None:
    for job in iter(asked.get, None):
        answer: Future[R] = Future()
        try:
            answer.set_result(job())
        except BaseException as error:  # raised where the result is asked for
            answer.set_exception(error)
        answers.put(answer)
        del answer, job  # while the next is waited for, only its taker has it


def together(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Does something with several items, a few at a time; returns the results in order."""
    with ThreadPoolExecutor(max_workers=THREADS) as pool:
        return list(pool.map(work, items))

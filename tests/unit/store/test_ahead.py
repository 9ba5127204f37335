"""Laws of work beside work: order, no more than is said, errors in their place, and no harm to what is forked there."""

from __future__ import annotations

import gc
import multiprocessing
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial

import pytest

from lwfed.store.ahead import parallel_map, prefetch


class Value:
    """Something that can be watched."""


def test_results_come_in_order_and_two_at_a_time() -> None:
    begun: list[int] = []

    def job(number: int) -> int:
        begun.append(number)
        return number

    found = prefetch(partial(job, number) for number in range(5))
    for number, value in enumerate(found):
        assert value == number and len(begun) <= number + 2
    assert begun == list(range(5))


def test_a_result_is_let_go_of_when_its_taker_does() -> None:
    made: list[weakref.ref[Value]] = []

    def job() -> Value:
        value = Value()
        made.append(weakref.ref(value))
        return value

    with closing(prefetch([job, job, job])) as found:
        for value in found:
            del value
            gc.collect()
            assert sum(one() is not None for one in made) <= 1, "the one that is ahead"


def test_an_error_comes_where_its_result_would() -> None:
    def jobs() -> Iterator[Callable[[], int]]:
        yield lambda: 1
        yield lambda: 1 // 0
        yield lambda: 3

    found = prefetch(jobs())
    assert next(found) == 1
    with pytest.raises(ZeroDivisionError):
        next(found)


def test_a_process_that_is_forked_ahead_ends_well() -> None:
    """Such as a loader's workers: one forked by a pool's thread would end with an error."""

    def job() -> int | None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python's word on forks beside threads
            process = multiprocessing.get_context("fork").Process(target=int)
            process.start()
        process.join()
        return process.exitcode

    assert list(prefetch([job, job])) == [0, 0]


def test_parallel_map_keeps_the_order() -> None:
    assert parallel_map(lambda number: number * number, range(20)) == [number * number for number in range(20)]

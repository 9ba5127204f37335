"""Laws of work beside work: order, no more than is said, errors in their place."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import partial

import pytest

from lwfed.store.ahead import GRACE_S, in_groups, parallel_map, prefetch, taken_ahead


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


def test_items_are_made_one_ahead_and_none_after_an_error_or_the_last() -> None:
    made: list[int] = []

    def items(last: int) -> Generator[int | None, None, None]:
        for number in range(last):
            made.append(number)
            yield None if number == 1 else 6 // (3 - number)

    found = taken_ahead(items(3))
    for number, item in enumerate(found):
        assert item == (2, None, 6)[number] and len(made) <= number + 2
    assert made == [0, 1, 2]
    failing = taken_ahead(items(5))
    assert [next(failing) for _ in range(3)] == [2, None, 6]
    with pytest.raises(ZeroDivisionError):
        next(failing)
    made.clear()
    ahead = items(3)
    with closing(taken_ahead(ahead)) as left:
        next(left)
    assert len(made) <= 2 and next(ahead, "closed") == "closed"
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_an_error_comes_where_its_result_would() -> None:
    def jobs() -> Iterator[Callable[[], int]]:
        yield lambda: 1
        yield lambda: 1 // 0
        yield lambda: 3

    found = prefetch(jobs())
    assert next(found) == 1
    with pytest.raises(ZeroDivisionError):
        next(found)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("ahead", [0, 2])
def test_groups_are_in_order_and_begun_no_further_ahead_than_agreed(threads: int, ahead: int) -> None:
    asked: list[int] = []

    def groups() -> Iterator[list[int]]:
        for number, group in enumerate(([0, 1, 2], [], [3], [4, 5], [6])):
            asked.append(number)
            yield group

    found = []
    for number, futures in enumerate(in_groups(lambda n: n * n, groups(), threads=threads, ahead=ahead)):
        assert len(asked) <= number + 1 + ahead
        found.append([future.result() for future in futures])
    assert found == [[0, 1, 4], [], [9], [16, 25], [36]]


def test_an_error_of_one_item_is_its_own() -> None:
    with closing(in_groups(lambda n: 1 // n, [[1, 0, 1]], threads=2, ahead=1)) as groups:
        good, bad, last = next(groups)
        assert (good.result(), last.result()) == (1, 1)
        with pytest.raises(ZeroDivisionError):
            bad.result()


def test_what_is_not_begun_when_a_stream_is_left_is_not_done() -> None:
    go, begun = threading.Event(), []

    def work(number: int) -> int:
        begun.append(number)
        go.wait()
        return number

    groups = in_groups(work, [[0, 1, 2, 3]], threads=1, ahead=0)
    next(groups)
    started = time.monotonic()
    groups.close()  # a thread that is stuck keeps nobody waiting
    assert time.monotonic() - started < 10 * GRACE_S
    go.set()
    for thread in threading.enumerate():
        if thread.name.startswith("read-"):
            thread.join()
    assert begun in ([], [0])


def test_parallel_map_keeps_the_order() -> None:
    assert parallel_map(lambda number: number * number, range(20)) == [number * number for number in range(20)]

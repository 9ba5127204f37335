"""Pauses grow up to a longest one, failures have one bound in time, and every answer starts over."""

from __future__ import annotations

import threading
import time

import pytest

from lwfed.patience import Patience


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def spent(patience: Patience, clock: Clock) -> list[float]:
    """Fails until it gives up; returns the pauses, all of which the clock takes."""
    pauses: list[float] = []
    while (pause_s := patience.failed("gone")) is not None:
        pauses.append(pause_s)
        clock.now_s += pause_s
    return pauses


@pytest.mark.parametrize("bound_s", [0.0, 0.05, 1.0, 60.0])
def test_pauses_double_up_to_the_longest_and_add_up_to_the_bound(bound_s: float) -> None:
    clock = Clock()
    pauses = spent(Patience(bound_s=bound_s, longest_s=4.0, clock=clock, spread=lambda: 0.5), clock)
    assert sum(pauses) == pytest.approx(bound_s, abs=2e-3)
    whole = [0.1 * 2**n if 0.1 * 2**n < 4.0 else 4.0 for n in range(len(pauses))]
    assert pauses[:-1] == pytest.approx(whole[:-1])


def test_pauses_are_spread_and_never_pass_the_bound() -> None:
    for drawn in (0.0, 1.0):
        clock = Clock()
        patience = Patience(bound_s=2.0, first_s=1.0, clock=clock, spread=lambda: drawn)  # noqa: B023
        assert patience.failed("gone") == pytest.approx(0.7 if drawn == 0 else 1.3)
        clock.now_s += 1.9
        assert patience.failed("gone") == pytest.approx(0.1)


def test_an_answer_starts_over() -> None:
    clock = Clock()
    patience = Patience(bound_s=3.0, clock=clock, spread=lambda: 0.5)
    first = spent(patience, clock)
    assert patience.failing_s == pytest.approx(3.0) and patience.failed("gone") is None
    patience.answered()
    assert patience.failing_s == 0
    assert spent(patience, clock) == pytest.approx(first)


def test_people_hear_once_per_outage_and_not_of_a_short_one() -> None:
    clock = Clock()
    said: list[tuple[str, float]] = []
    patience = Patience(bound_s=60.0, report_after_s=10.0, report=lambda *what: said.append(what), clock=clock)
    for outage in range(2):
        patience.failed("gone")
        assert len(said) == outage
        for _ in range(3):
            clock.now_s += 11.0
            patience.failed("gone")
        assert len(said) == outage + 1 and said[-1] == ("gone", 49.0)
        patience.answered()


def test_a_pause_ends_at_once_when_it_is_over() -> None:
    patience = Patience(bound_s=60.0, first_s=30.0)
    began = time.monotonic()
    threading.Timer(0.1, patience.over.set).start()
    assert not patience.wait("gone")
    assert time.monotonic() - began < 5
    assert patience.failed("gone") is None

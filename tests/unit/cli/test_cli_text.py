"""Laws of numbers as people read them."""

from __future__ import annotations

import re

import pytest

from lwfed.drive import text


@pytest.mark.parametrize(
    ("count", "written"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (190_500_000, "190.5 MB"),
        (999_499, "999.5 kB"),
        (5e12, "5000.0 GB"),
    ],
)
def test_bytes_are_written_in_powers_of_a_thousand(count: float, written: str) -> None:
    assert text.size(count) == written


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (42, "42 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"), (7380, "2 h 3 min")],
)
def test_times_have_two_units_at_most(seconds: float, written: str) -> None:
    assert text.duration(seconds) == written


def test_sizes_grow_with_what_they_say() -> None:
    factors = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}
    last = -1.0
    for exponent in range(120):
        count = 1.3**exponent
        number, unit = text.size(count).split()
        value = float(number) * factors[unit]
        assert value >= last and value == pytest.approx(count, rel=0.5 if count < 2 else 0.1)
        last = value


def test_metrics_are_named_and_ordered_as_people_count() -> None:
    assert text.in_order(["test/t2i/R@10", "test/t2i/R@1", "test/t2i/R@5", "test/t2i/R@50"]) == [
        f"test/t2i/R@{k}" for k in (1, 5, 10, 50)
    ]
    assert text.title("test/t2i/R@1") == "t2i R@1" and text.title("train/loss") == "train loss"
    assert text.score("test/loss", 1.23456) == "1.235"
    assert re.fullmatch(r"12\.3 ?%", text.score("test/t2i/R@1", 0.1234))
    assert text.score("test/accuracy", None) == "-"
